"""MirrorMetrics and MirrorCompare in the real executor, against figures that were come by another way."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from support import tiny
from support.judge import EYE, eye

from harness.graph import Graph, give, node
from harness.results import GraphFailed

NAMES = ("psnr", "ssim", "psnr_inside", "psnr_outside", "ssim_inside", "ssim_outside", "structure", "clip_score",
         "directional")
WORDS = ("a photo of a dog", "a photo of a cat")


def pictures(count=2, height=24, width=32):
    generator = torch.Generator().manual_seed(5)
    before = torch.rand(count, height, width, 3, generator=generator)
    return (before + .1 * torch.randn(before.shape, generator=generator)).clamp(0, 1), before


def region():
    mask = torch.zeros(1, 24, 32)
    mask[:, 4:20, 8:30] = 1
    return mask


def metrics(run_graph, image, reference, **more):
    g = Graph()
    links = {name: g.add(node(lambda v=value: v, (kind,)))() for name, (value, kind) in more.items() if kind}
    plain = {name: value for name, (value, kind) in more.items() if not kind}
    made = g.add("MirrorMetrics", image=g.add(node(lambda: image, ("IMAGE",)))(),
                 reference=g.add(node(lambda: reference, ("IMAGE",)))(), **links, **plain)
    *figures, table = run_graph(g).outputs[made.id]
    return dict(zip(NAMES, figures, strict=True)), table


def ssim_map(a, b):
    def blur(y):
        return gaussian_filter(y, 1.5, truncate=3.4, mode="constant")[5:-5, 5:-5]

    (m, n), (v, w), c = map(blur, (a, b)), (blur(a * a), blur(b * b)), blur(a * b)
    v, w, c = v - m * m, w - n * n, c - m * n
    return (2 * m * n + 1e-4) * (2 * c + 9e-4) / ((m * m + n * n + 1e-4) * (v + w + 9e-4))


def test_psnr_and_ssim_of_the_whole_and_of_the_region(run_graph):
    image, reference = pictures()
    found, table = metrics(run_graph, image, reference, mask=(region(), "MASK"))
    a, b = image.double().numpy(), reference.double().numpy()
    where = region()[0].numpy() > 0
    maps = [np.mean([ssim_map(a[k, ..., c], b[k, ..., c]) for c in range(3)], 0) for k in range(2)]
    inner = where[5:-5, 5:-5]

    def mean_psnr(pick):
        return np.mean([-10 * np.log10(((a[k] - b[k])[pick] ** 2).mean()) for k in range(2)])

    wanted = {"psnr": mean_psnr(slice(None)), "psnr_inside": mean_psnr(where), "psnr_outside": mean_psnr(~where),
              "ssim": np.mean(maps), "ssim_inside": np.mean([m[inner].mean() for m in maps]),
              "ssim_outside": np.mean([m[~inner].mean() for m in maps])}
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-4), name
    assert all(math.isnan(found[name]) for name in NAMES[6:])
    lines = table.splitlines()
    assert len(lines) == 4 and f"{wanted['psnr_outside']:.2f}" in lines[3] and "clip" not in table


def test_without_a_mask_there_are_no_regions_and_one_reference_serves_all(run_graph):
    image, reference = pictures()
    found, table = metrics(run_graph, image, reference[:1])
    each = [-10 * math.log10((image[k] - reference[0]).square().mean()) for k in range(2)]
    assert found["psnr"] == pytest.approx(np.mean(each), abs=1e-4)
    assert math.isnan(found["psnr_inside"]) and "inside" not in table


def by_transformers(images):
    """(features of places, embeddings) from the other implementation of the same network."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    other = CLIPVisionModelWithProjection(CLIPVisionConfig(**EYE)).eval()
    weights = {k: v.float() for k, v in eye().model.state_dict().items()}
    missing, _ = other.load_state_dict(weights, strict=False)
    assert not [name for name in missing if "position_ids" not in name]
    mean, spread = torch.tensor([.48145466, .4578275, .40821073]), torch.tensor([.26862954, .26130258, .27577711])
    pixels = (((255 * images).round() / 255 - mean) / spread).movedim(-1, 1)
    out = other(pixel_values=pixels)
    return out.last_hidden_state.detach().double(), out.image_embeds.detach().double()


def words_by_transformers(clip, text):
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection
    tower = clip.cond_stage_model.clip_l.transformer
    ids = [token for token, _ in clip.tokenize(text)["l"][0]]
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=tiny.WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        hidden_act="quick_gelu", projection_dim=tiny.WIDTH, eos_token_id=ids[-1], bos_token_id=ids[0], pad_token_id=1)
    other = CLIPTextModelWithProjection(config).eval()
    weights = {k: v.float() for k, v in tower.state_dict().items()}
    rows = len(weights["text_model.embeddings.token_embedding.weight"])
    other.resize_token_embeddings(rows)
    missing, _ = other.load_state_dict(weights, strict=False)
    assert not [name for name in missing if "position_ids" not in name]
    return other(input_ids=torch.tensor([ids])).text_embeds[0].detach().double()


@pytest.mark.every_host
def test_clip_and_structure_agree_with_another_implementation_of_the_networks(run_graph):
    image, reference = pictures(2, 32, 32)
    clip = tiny.clip()
    found, _ = metrics(run_graph, image, reference, clip_vision=(eye(), "CLIP_VISION"), clip=(clip, "CLIP"),
                       target_text=(WORDS[0], None), source_text=(WORDS[1], None))
    target, source = (words_by_transformers(clip, text) for text in WORDS)
    (places, seen), (places_before, before) = by_transformers(image), by_transformers(reference)

    def unit(x):
        return x / x.norm(dim=-1, keepdim=True)

    change, words = unit(seen) - unit(before), unit(target) - unit(source)
    similar = [unit(p) @ unit(p).transpose(1, 2) for p in (places, places_before)]
    assert found["clip_score"] == pytest.approx(float((100 * unit(seen) @ unit(target)).clamp(min=0).mean()), abs=.02)
    assert found["directional"] == pytest.approx(float((unit(change) @ unit(words)).mean()), abs=2e-3)
    assert found["structure"] == pytest.approx(float((similar[0] - similar[1]).square().mean()), rel=2e-2)
    assert abs(found["directional"]) > 1e-3 and found["structure"] > 1e-5


@pytest.mark.parametrize("changes, says", [
    ({"clip": (tiny.clip, "CLIP"), "target_text": (WORDS[0], None)}, "Connect the `clip_vision`"),
    ({"clip": (tiny.clip, "CLIP"), "clip_vision": (eye, "CLIP_VISION")}, "`target_text` is empty"),
    ({"mask": (lambda: torch.zeros(3, 24, 32), "MASK")}, "3 masks for 2 pictures"),
    ({"reference": (lambda: torch.zeros(2, 24, 16, 3), "IMAGE")}, "Give pictures of one size"),
])
def test_what_does_not_fit_is_refused_in_words(run_graph, changes, says):
    image, reference = pictures()
    made = {name: (value() if kind else value, kind) for name, (value, kind) in changes.items()}
    reference = made.pop("reference", (reference, None))[0]
    with pytest.raises(GraphFailed, match=says):
        metrics(run_graph, image, reference, **made)


def test_a_clip_without_its_projection_is_refused(run_graph):
    image, reference = pictures()
    clip = tiny.clip()
    projection = clip.cond_stage_model.clip_l.transformer.text_projection.weight
    projection.data.copy_(torch.eye(len(projection)))
    with pytest.raises(GraphFailed, match="without its projection"):
        metrics(run_graph, image, reference, clip=(clip, "CLIP"), clip_vision=(eye(), "CLIP_VISION"),
                target_text=(WORDS[0], None))


def compare(g, images, **more):
    links = {f"images.image{k}": g.add(node(lambda v=image: v, ("IMAGE",)))() for k, image in enumerate(images)}
    return g.add("MirrorCompare", **{"labels": "before\nfirst", "gain": 4.0, "tile": 384, **links, **more})


def test_a_sheet_shows_every_picture_and_where_it_differs(run_graph):
    _, reference = pictures(2)
    changed = reference.clone()
    changed[:, :8, :8] = 1 - changed[:, :8, :8]
    g = Graph()
    source = g.add(node(lambda: reference, ("IMAGE",)))()
    mask = g.add(node(region, ("MASK",)))()
    plain = compare(g, [changed, reference[:1]], reference=source, gain=0.0)
    heat = compare(g, [changed, reference[:1]], reference=source)
    marked = compare(g, [changed, reference[:1]], reference=source, mask=mask)
    run = run_graph(g)
    [sheet], [hot], [drawn] = (run.outputs[made.id][0] for made in (plain, heat, marked))
    width = (sheet.shape[1] - 2 * 4) // 3
    assert sheet.shape[1] >= 3 * 32 + 8 and hot.shape[0] - sheet.shape[0] == 2 * (24 + 4)
    left = sheet.shape[1] - (3 * width + 8)
    second = sheet[-24:, left + width + 4: left + 2 * width + 4]
    assert (second - changed[1]).abs().max() < 3e-3, "the second picture of the batch stands below the first"
    last = hot[-24:, left + width + 4: left + 2 * width + 4].sum(-1)
    assert last[:8, :8].mean() > 2 * last[8:, 8:].mean() and last[8:, 8:].std() == 0
    assert (drawn[-24:, left:] - hot[-24:, left:]).abs().sum() > 10


def test_pictures_that_cannot_be_compared_are_refused(run_graph):
    g = Graph()
    source = g.add(give(lambda: torch.zeros(2, 24, 32, 3), "IMAGE"))()
    compare(g, [torch.zeros(1, 24, 64, 3)], reference=source)
    with pytest.raises(GraphFailed, match="proportions"):
        run_graph(g)
