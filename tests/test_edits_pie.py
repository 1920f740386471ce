"""PIE-Bench's figures against the formulas written out, and the runner on a small folder laid out like it."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image

from harness import tiny

PROMPTS = ("a [cat] on a car", "a [dog] on a car")


@pytest.fixture
def pair():
    """(edited, source) [1, 3, 32, 32] in bytes / 255, and a mask [1, 1, 32, 32]."""
    rng = np.random.default_rng(3)
    edited, source = (torch.from_numpy(rng.integers(0, 256, (1, 3, 32, 32)) / 255).float() for _ in range(2))
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 10:20, 5:25] = 1
    return edited, source, mask


def test_a_mask_is_decoded_run_by_run():
    from bench.pie_metrics import decoded_mask
    spans = [5, 3, 30, 25, 95, 20]
    flat = [0] * 99
    for start, length in zip(spans[::2], spans[1::2], strict=True):
        for k in range(start, min(start + length, 99)):
            flat[k] = 1
    by_hand = np.array(flat).reshape(9, 11)
    by_hand[[0, -1]] = by_hand[:, [0, -1]] = 1
    assert (decoded_mask(spans, 9, 11)[0, 0].numpy() == by_hand).all() and 0 < by_hand.mean() < 1


def test_the_background_in_both_readings(pair):
    from bench.pie_metrics import background
    edited, source, mask = pair
    found = background(*pair, PROMPTS)
    a, b, keep = edited[0].double().numpy(), source[0].double().numpy(), mask[0, 0].numpy() == 0
    errors = ((a - b) ** 2)[:, keep]
    assert found["mse"] == pytest.approx(1e4 * errors.sum() / a.size, rel=1e-5)
    assert found["psnr"] == pytest.approx(10 * np.log10(a.size / errors.sum()), abs=1e-4)
    assert found["psnr_true"] == pytest.approx(-10 * np.log10(errors.mean()), abs=1e-4)
    assert found["psnr"] > found["psnr_true"] + .5
    assert background(edited, source, torch.ones_like(mask), PROMPTS) == {}


def test_structure_distance_takes_the_keys_of_the_last_block(pair, tmp_path):
    from transformers import ViTConfig, ViTModel

    from bench.pie_metrics import Dino
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    torch.manual_seed(0)
    network = ViTModel(ViTConfig(**sizes, image_size=224, patch_size=32), add_pooling_layer=False).eval()
    network.save_pretrained(tmp_path)
    found = Dino(tmp_path)(*pair, PROMPTS)

    def similarities(x, scale):
        x = torch.nn.functional.interpolate(scale * x, size=224, mode="bilinear", antialias=True)
        mean, spread = (torch.tensor(v)[:, None, None] for v in ([.485, .456, .406], [.229, .224, .225]))
        layer = next(part for name, part in network.named_modules() if name.endswith("layer.1") or
                     name.endswith("layers.1"))
        hidden = network((x - mean) / spread, output_hidden_states=True).hidden_states[1]
        key = next(part for name, part in layer.named_modules() if name.endswith((".key", ".k_proj")))
        k = key(layer.layernorm_before(hidden))[0].detach().double()
        k = k / k.norm(dim=-1, keepdim=True)
        return k @ k.T

    for name, scale in (("dist", 255), ("dist_true", 1)):
        a, b = (similarities(x, scale) for x in pair[:2])
        assert found[name] == pytest.approx(float(1000 * ((a - b) ** 2).mean()), rel=1e-3), name
    assert found["dist"] != pytest.approx(found["dist_true"], rel=.05)


def test_clip_figures_are_cosines_of_the_whole_network(host, pair, tmp_path):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    from bench.pie_metrics import Clip
    folder, vocabulary = tiny.tokenizer_folder()
    text = {"vocab_size": len(vocabulary), "eos_token_id": vocabulary["<|endoftext|>"], "hidden_size": 32,
            "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    vision = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 64}
    torch.manual_seed(1)
    network = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    parts = (network, CLIPTokenizer.from_pretrained(folder), CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}))
    for part in parts:
        part.save_pretrained(tmp_path)
    found = Clip(tmp_path)(*pair, PROMPTS)
    edited, source, mask = pair
    pictures = [Image.fromarray((255 * x[0]).byte().permute(1, 2, 0).numpy()) for x in (edited, edited * mask, source)]
    words = [prompt.replace("[", "").replace("]", "") for prompt in PROMPTS]
    with torch.no_grad():
        out = network(pixel_values=parts[2](pictures, return_tensors="pt")["pixel_values"],
                      **parts[1](words, return_tensors="pt", padding=True))
    cosines = (out.logits_per_image / network.logit_scale.detach().exp()).double().numpy()
    images, texts = (x.double().numpy() for x in (out.image_embeds, out.text_embeds))
    change, said = images[0] - images[2], texts[1] - texts[0]
    assert found["clip_whole"] == pytest.approx(max(100 * cosines[0, 1], 0), abs=1e-2)
    assert found["clip_edited"] == pytest.approx(max(100 * cosines[1, 1], 0), abs=1e-2)
    assert found["clip_acc"] == float(cosines[0, 1] > cosines[0, 0])
    by_hand = change @ said / np.linalg.norm(change) / np.linalg.norm(said)
    assert found["directional"] == pytest.approx(by_hand, abs=1e-3)


def test_without_networks_it_says_which_and_goes_on(tmp_path):
    from bench.pie_metrics import available, background
    figures, missing = available(tmp_path)
    assert figures == [background] and len(missing) == 3
    assert any("dino-vitb8" in line for line in missing) and any("squeezenet" in line for line in missing)


def test_a_folder_is_measured_and_a_second_run_reads_the_book(host, tmp_path):
    from bench.edits_measure import Stage
    from bench.pie import entries, measured
    from bench.pie_metrics import background
    folder, checkpoint = tmp_path / "pie", tmp_path / "model"
    (folder / "annotation_images" / "0_random").mkdir(parents=True)
    checkpoint.write_bytes(b"any")
    annotations = {}
    for k in range(2):
        name = f"0_random/{k}.png"
        Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1), 20 + k).convert("RGB").save(
            folder / "annotation_images" / name)
        annotations[f"00{k}"] = {"image_path": name, "original_prompt": PROMPTS[0], "editing_prompt": PROMPTS[1],
                                 "mask": [512 * 100, 512 * 200]}
    (folder / "mapping_file.json").write_text(json.dumps(annotations))
    [first, _] = entries(folder, None, 64)
    picture, _, mask = first.pictures()
    assert picture.shape == (1, 64, 64, 3) and mask.shape == (1, 1, 64, 64) and .3 < mask.mean() < .5
    assert first.captions == ("a cat on a car", "a dog on a car")
    args = argparse.Namespace(folder=folder, checkpoint=checkpoint, methods=["floor", "ddim-cfg1"], count=None, size=64,
                              steps=2, fresh=False)
    with torch.inference_mode():
        stage = Stage(host, tiny.unet(), tiny.clip(), tiny.vae(), 2)
    rows = measured(stage, args, [background], tmp_path)
    assert [(row["method"], row["pictures"], row["forwards"]) for row in rows] == [("floor", 2, 0), ("ddim-cfg1", 2, 6)]
    assert all(np.isfinite(row["psnr"]) for row in rows)
    assert (tmp_path / "pictures" / "ddim-cfg1" / "000.png").exists()
    stage.run = None
    assert measured(stage, args, [background], tmp_path) == rows
