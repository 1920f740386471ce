"""Edited Region and Paste Edit onto Original in the real host."""
import pytest
import torch
from support import tiny

from harness.graph import Graph, give, node
from harness.results import GraphFailed


def picture(height=64, width=80, batch=1, seed=0):
    coarse = torch.rand(batch, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear").movedim(1, -1)


def changed(image):
    image = image.clone()
    image[:, 20:40, 24:56] = 1 - image[:, 20:40, 24:56]
    return image


def images(g: Graph, **values):
    return {name: g.add(give(lambda v=value: v, "IMAGE"))() for name, value in values.items()}


def test_the_region_of_any_two_pictures(run_graph):
    g = Graph()
    made = g.add("MirrorRegion", **images(g, before=picture(), after=changed(picture())), widen=0, soften=0)
    [region] = run_graph(g).outputs[made.id]
    assert region.shape == (1, 64, 80)
    assert region[:, 22:38, 26:54].min() == 1 and region[:, :16].max() == 0 and region[:, 44:].max() == 0


def test_one_picture_is_compared_with_all_and_other_counts_are_refused(run_graph):
    g = Graph()
    three = torch.cat([changed(picture()), picture(), changed(picture())])
    made = g.add("MirrorRegion", **images(g, before=picture(), after=three), widen=0, soften=0)
    [region] = run_graph(g).outputs[made.id]
    assert region.shape == (3, 64, 80) and torch.equal(region[0], region[2]) and not region[1].any()
    g = Graph()
    g.add("MirrorRegion", **images(g, before=picture(batch=2), after=picture(batch=3)), widen=0, soften=0)
    with pytest.raises(GraphFailed, match="`before` has 2 pictures where others have 3. Give one, or as many."):
        run_graph(g)


@pytest.mark.parametrize("size", [(64, 80), (67, 85)])
def test_the_paste_in_a_graph_with_the_vae(run_graph, size):
    original = picture(*size)
    g = Graph()
    vae = g.add(give(tiny.vae, "VAE"))()
    links = images(g, original=original)
    latent = g.add("VAEEncode", pixels=links["original"], vae=vae)()
    decoded = g.add("VAEDecode", samples=latent, vae=vae)()
    edited = g.add(node(changed, ("IMAGE",), {"image": "IMAGE"}), image=decoded)()
    made = g.add("MirrorPaste", original=links["original"], edited=edited, vae=vae, widen=3, soften=2)
    run = run_graph(g)
    (whole, region), [picture_of_the_edit] = run.outputs[made.id], run.outputs[edited[0]]
    assert whole.shape == original.shape and region.shape == (1, *size)
    top, left = (size[0] - 64) // 2, (size[1] - 80) // 2
    outside = region[0] == 0
    assert torch.equal(whole[0][outside], original[0][outside]) and outside.float().mean() > .3
    assert region[0, top + 22:top + 38, left + 26:left + 54].min() == 1
    assert torch.equal(whole[0, top + 22:top + 38, left + 26:left + 54], picture_of_the_edit[0, 22:38, 26:54])


class VideoVAE:
    """The tiny VAE as one of videos: a batch is the frames of one, of four after the first one latent is left."""

    latent_dim = 3

    def __init__(self):
        self.still = tiny.vae()

    def encode(self, pixels):
        return self.still.encode(pixels)[::4].movedim(0, 1)[None]

    def decode(self, samples):
        return self.still.decode(samples[0].movedim(1, 0))[None]


def test_the_paste_with_a_vae_of_videos_is_that_with_one_of_pictures(run_graph):
    original = torch.cat([picture(), picture(seed=1)])
    made = []
    for make in (tiny.vae, VideoVAE):
        g = Graph()
        edited = g.add(give(lambda: changed(tiny.vae().decode(tiny.vae().encode(original))), "IMAGE"))()
        paste = g.add("MirrorPaste", **images(g, original=original), edited=edited,
                      vae=g.add(give(make, "VAE"))(), widen=3, soften=2)
        made.append(run_graph(g).outputs[paste.id])
    (whole, region), (of_videos, region_of_videos) = made
    assert of_videos.shape == original.shape and 0 < region.mean() < 0.7
    assert torch.allclose(of_videos, whole, atol=1e-5) and torch.allclose(region_of_videos, region, atol=1e-4)


def test_a_mask_of_the_users_own_and_a_batch(run_graph):
    mask = torch.zeros(1, 32, 40)
    mask[:, :16] = 1
    g = Graph()
    edits = 1 - picture(batch=2, seed=3)
    region = g.add(give(lambda: mask, "MASK"))()
    made = g.add("MirrorPaste", **images(g, original=picture(), edited=edits), region=region, widen=0, soften=0)
    whole, used = run_graph(g).outputs[made.id]
    assert whole.shape == (2, 64, 80, 3) and used.shape == (2, 64, 80)
    assert torch.equal(whole[:, :30], edits[:, :30]) and torch.equal(whole[1, 34:], picture()[0, 34:])


@pytest.mark.parametrize("changes, says", [
    ({"edited": picture(72, 80)}, "80 x 72 and the original 80 x 64"),
    ({"original": picture(batch=3), "edited": picture(batch=2)}, "has 2 pictures where others have 3"),
])
def test_what_does_not_fit_is_refused_in_words(run_graph, changes, says):
    g = Graph()
    g.add("MirrorPaste", **images(g, **{"original": picture(), "edited": picture(), **changes}), widen=3, soften=2)
    with pytest.raises(GraphFailed, match=says):
        run_graph(g)


def test_several_originals_or_regions_and_one_edit(run_graph):
    edit, masks = changed(picture()), torch.zeros(3, 64, 80)
    masks[1, 20:40, 24:56] = 1
    for originals in (picture(), torch.cat([picture(seed=k) for k in range(3)])):
        g = Graph()
        links = images(g, original=originals, edited=edit)
        regions = g.add(give(lambda: masks, "MASK"))()
        made = g.add("MirrorPaste", **links, region=regions, widen=0, soften=0)
        whole, region = run_graph(g).outputs[made.id]
        assert whole.shape == (3, 64, 80, 3) and torch.equal(region, masks)
        assert torch.equal(whole[0], originals[0]) and torch.equal(whole[1, 20:40, 24:56], edit[0, 20:40, 24:56])
    g = Graph()
    made = g.add("MirrorPaste", **images(g, original=torch.cat([picture(seed=k) for k in range(3)]), edited=edit),
                 widen=0, soften=0)
    whole, region = run_graph(g).outputs[made.id]
    assert len(whole) == len(region) == 3


def test_a_mask_of_the_original_is_cropped_as_the_picture_is(run_graph):
    """67 x 85 are 64 x 80 to the autoencoder, from row 1 and column 2 on."""
    mask = torch.zeros(1, 67, 85)
    mask[:, 17:33, 18:50] = 1
    g = Graph()
    made = g.add("MirrorPaste", **images(g, original=picture(67, 85), edited=changed(picture(64, 80))),
                 region=g.add(give(lambda: mask, "MASK"))(), widen=0, soften=0)
    assert torch.equal(run_graph(g).outputs[made.id][1], mask)
