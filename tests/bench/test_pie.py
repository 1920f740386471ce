"""PIE-Bench's figures of a picture against the formulas written out."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from support import tiny

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


@pytest.fixture
def squeeze(tmp_path, monkeypatch):
    """(SqueezeNet with random weights, the folder with the file of them). A try to fetch weights fails the test."""
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    torch.manual_seed(2)
    network = torchvision.models.squeezenet1_1(weights=None).eval()
    for bias in (p for p in network.parameters() if p.dim() == 1):
        torch.nn.init.normal_(bias, std=.1)
    file = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    return network, tmp_path


def lpips_by_hand(network, a, b):
    """LPIPS (Zhang et al., CVPR 2018, eq. 1) of pictures in [-1, 1], with the package's file of the linear heads."""
    import torchmetrics
    heads = torch.load(Path(torchmetrics.__file__).parent / "functional/image/lpips_models/squeeze.pth",
                       map_location="cpu", weights_only=True)
    shift, scale = (torch.tensor(v)[:, None, None] for v in ([-.030, -.088, -.188], [.458, .448, .450]))
    x, total = torch.cat([(a - shift) / scale, (b - shift) / scale]), 0.
    taken = iter(range(7))
    for k, layer in enumerate(network.features):
        x = layer(x)
        if k in (1, 4, 7, 9, 10, 11, 12):
            unit = x.double() / x.double().square().sum(1, keepdim=True).sqrt()
            weight = heads[f"lin{next(taken)}.model.1.weight"].double()
            total += ((unit[0] - unit[1]) ** 2 * weight[0]).sum(0).mean().item()
    assert next(taken, None) is None
    return 1000 * total


def test_lpips_is_of_the_background_painted_black(pair, squeeze):
    from bench.pie_metrics import Lpips, available
    edited, source, mask = pair
    network, folder = squeeze
    usual = torch.hub.get_dir()
    figures, missing = available(folder)
    assert torch.hub.get_dir() == usual and len(missing) == 2 and isinstance(figures[-1], Lpips)
    with torch.inference_mode():
        found = figures[-1](*pair, PROMPTS)["lpips"]
        whole = figures[-1](edited, source, torch.zeros_like(mask), PROMPTS)["lpips"]
        black = lpips_by_hand(network, *(2 * x * (1 - mask) - 1 for x in (edited, source)))
        assert found == pytest.approx(black, rel=1e-4)
        assert whole == pytest.approx(lpips_by_hand(network, 2 * edited - 1, 2 * source - 1), rel=1e-4)
        assert abs(found - whole) > .01 * whole
        assert figures[-1](edited, source, torch.ones_like(mask), PROMPTS) == {}


def test_a_broken_file_for_lpips_leaves_the_hub_where_it_was(squeeze):
    from bench.pie_metrics import SQUEEZE, Lpips
    (squeeze[1] / SQUEEZE).write_bytes(b"cut short")
    usual = torch.hub.get_dir()
    with pytest.raises(Exception, match="."):
        Lpips(squeeze[1])
    assert torch.hub.get_dir() == usual


def test_without_the_package_lpips_is_named(squeeze, monkeypatch):
    from bench import pie_metrics
    monkeypatch.setattr(pie_metrics, "installed", lambda *_: False)
    figures, missing = pie_metrics.available(squeeze[1])
    assert figures == [pie_metrics.background] and "no lpips: install the optional packages" in missing[-1]


def test_without_networks_it_says_which_and_goes_on(tmp_path):
    from bench.pie_metrics import available, background
    figures, missing = available(tmp_path)
    assert figures == [background] and len(missing) == 3
    assert any("dino-vitb8" in line for line in missing) and any("squeezenet" in line for line in missing)
