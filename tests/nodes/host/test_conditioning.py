"""What a CONDITIONING carries survives: areas, masks, time ranges, long prompts, LoRA hooks, ControlNets."""

import pytest
import torch
from support import tiny
from support.tiny import Scene

from harness.graph import give, node
from mirror_ops.measure.metrics import relative_displacement


def samples(run, output, slot=0):
    return run.outputs[output.id][slot]["samples"]


def assert_stock_walks_the_mirror(run_graph, scene, **changes):
    """A stock KSampler with the rewritten CONDITIONING arrives where the mirror did, and rewriting did something."""
    mirror = scene.invert(Scene.PAPER, cfg=3.0, **changes)
    plain = scene.invert(Scene.NONE, cfg=3.0, **changes)
    stock = scene.ksampler(mirror(0), mirror(1), changes.get("negative", scene.empty), 3.0)
    run = run_graph(scene, cached=True)
    assert relative_displacement(samples(run, stock), samples(run, mirror, 4)).max() < 1e-5
    assert relative_displacement(samples(run, plain, 4), samples(run, mirror, 4)).min() > 1e-3
    return run.outputs[mirror.id]


def test_areas_and_masks(run_graph):
    scene = Scene(latent=lambda: tiny.pictures(height=16, width=16))
    half = node(lambda: torch.cat([torch.ones(1, 128, 64), torch.zeros(1, 128, 64)], dim=2), ("MASK",))
    left = scene.add(
        "ConditioningSetMask", conditioning=scene.text("a cat"), mask=scene.add(half)(), strength=0.8,
        set_cond_area="default")
    corner = scene.add(
        "ConditioningSetArea", conditioning=scene.text("a red car"), width=64, height=64, x=64, y=0, strength=0.7)
    scene.source = scene.add("ConditioningCombine", conditioning_1=left(), conditioning_2=corner())()
    scene.source = scene.add("ConditioningCombine", conditioning_1=scene.source, conditioning_2=scene.text("a photo"))()
    made = assert_stock_walks_the_mirror(run_graph, scene)
    assert made[2].embeddings.shape[2] == 3 * 77 and len(made[1]) == 5 * 3
    assert [sorted(set(options) & {"mask", "area"}) for _, options in made[1][:3]] == [["mask"], ["area"], []]


def test_time_ranges_of_the_incoming_prompt(run_graph):
    scene = Scene()
    early = scene.add("ConditioningSetTimestepRange", conditioning=scene.text("a cat"), start=0.0, end=0.5)
    late = scene.add("ConditioningSetTimestepRange", conditioning=scene.text("a dog"), start=0.5, end=1.0)
    scene.source = scene.add("ConditioningCombine", conditioning_1=early(), conditioning_2=late())()
    made = assert_stock_walks_the_mirror(run_graph, scene)
    assert 5 <= len(made[1]) <= 6, "each step holds only what is active at it"


def test_a_gap_between_time_ranges_is_refused(run_graph):
    scene = Scene()
    scene.source = scene.add("ConditioningSetTimestepRange", conditioning=scene.source, start=0.5, end=1.0)()
    scene.invert(Scene.NONE)
    with pytest.raises(Exception, match="No part of the prompt is active at step 0 of 5"):
        run_graph(scene)


def test_prompts_of_more_than_77_tokens(run_graph):
    scene = Scene()
    scene.source = scene.text(" ".join(["a photo of a cat"] * 20))
    made = assert_stock_walks_the_mirror(run_graph, scene)
    assert made[2].embeddings.shape[2] == 154


def test_each_picture_of_a_batch_keeps_its_own_prompt(run_graph):
    scene = Scene(latent=lambda: tiny.pictures(2))

    def both(a, b):
        return [[torch.cat([a[0][0], b[0][0]]), a[0][1]]]

    joined = node(both, ("CONDITIONING",), {"a": "CONDITIONING", "b": "CONDITIONING"})
    scene.source = scene.add(joined, a=scene.text("a cat"), b=scene.text("a dog"))()
    made = assert_stock_walks_the_mirror(run_graph, scene)
    assert made[2].source.shape[0] == 2 and not torch.equal(*made[2].source)


def test_lora_hooks(run_graph, host):
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    block = "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k"
    lora = {f"{block}.lora_{way}.weight": torch.randn(shape, generator=generator)
            for way, shape in (("down", (4, tiny.WIDTH)), ("up", (64, 4)))}
    save_file({**lora, f"{block}.alpha": torch.tensor(4.0)}, str(host.base / "models" / "loras" / "tiny.safetensors"))

    scene = Scene()
    hooks = scene.add("CreateHookLora", lora_name="tiny.safetensors", strength_model=1.0, strength_clip=0.0)
    unhooked = scene.invert(Scene.PAPER, cfg=3.0)
    hooked = scene.add("ConditioningSetProperties", cond_NEW=scene.source, hooks=hooks(), strength=1.0,
                       set_cond_area="default")()
    other = scene.invert(Scene.PAPER, cfg=3.0, positive=hooked)
    scene.source = hooked
    made = assert_stock_walks_the_mirror(run_graph, scene)
    run = run_graph(scene, cached=True)
    assert all("hooks" in options for _, options in made[1])
    assert relative_displacement(samples(run, other, 4), samples(run, unhooked, 4)).min() > 1e-4, "the LoRA must count"


def test_controlnets(run_graph):
    scene = Scene()
    net = scene.add(give(tiny.controlnet, "CONTROL_NET"))
    hint = scene.add(node(lambda: torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(4)), ("IMAGE",)))
    applied = scene.add(
        "ControlNetApplyAdvanced", positive=scene.source, negative=scene.empty, control_net=net(), image=hint(),
        strength=1.0, start_percent=0.0, end_percent=1.0)
    bare = scene.invert(Scene.NONE)
    scene.source, scene.empty = applied(0), applied(1)
    controlled = scene.invert(Scene.NONE)
    made = assert_stock_walks_the_mirror(run_graph, scene)
    run = run_graph(scene, cached=True)
    assert all("control" in options for _, options in made[1])
    assert relative_displacement(samples(run, controlled), samples(run, bare)).min() > 1e-3, "the net must count"


def test_a_direction_moves_every_part_of_a_rewritten_prompt_and_ramps(host):
    directions, applied = host.pack_module("mirror_ops.directions.direction"), host.pack_module("nodes.edit.direction")
    direction = directions.EditDirection(torch.ones(1, 7, 4), torch.full((1, 4), 2.0))
    text, pooled = torch.zeros(1, 14, 4), torch.zeros(1, 4)
    windows = [[text, {"pooled_output": pooled, "start_percent": a, "end_percent": b}] for a, b in ((0, 0.5), (0.5, 1))]
    moved = applied.MirrorApplyDirection.execute(windows, direction, 0.5, 1.0).result[0]
    assert [entry[0][0, :, 0].tolist() for entry in moved] == [[0.75] * 7 + [0.0] * 7, [1.25] * 7 + [0.0] * 7]
    assert [entry[1]["pooled_output"][0, 0].item() for entry in moved] == [1.5, 2.5]
    assert text.eq(0).all() and "pooled_output" in windows[0][1]
    steady = applied.MirrorApplyDirection.execute([[text, {}]], direction, 2.0, 0.0).result[0]
    assert len(steady) == 1 and steady[0][0][0, 0, 0] == 2.0
    ramped = applied.MirrorApplyDirection.execute([[text, {}]], direction, 0.0, 1.0).result[0]
    assert len(ramped) == 20 and ramped[0][1]["start_percent"] == 0 and ramped[-1][1]["end_percent"] == 1


def test_prompts_get_one_length(host):
    """CLIP's chunks are repeated; other texts get their last token again, and their masks with them."""
    conditioning = host.pack_module("nodes.host.conditioning")
    chunks = [[[torch.randn(1, 77 * n, 4), {}]] for n in (2, 3)]
    one, other = conditioning.common_tokens(*chunks)
    assert torch.equal(one[0][0], chunks[0][0][0].repeat(1, 3, 1)) and other[0][0].shape[1] == 6 * 77
    short, long = ([[torch.randn(1, n, 4), {"attention_mask": torch.ones(1, n)}]] for n in (7, 11))
    one, other = conditioning.common_tokens(short, long)
    assert torch.equal(other[0][0], long[0][0]) and torch.equal(one[0][0][:, :7], short[0][0])
    assert torch.equal(one[0][0][:, 7:], short[0][0][:, -1:].expand(1, 4, 4))
    assert one[0][1]["attention_mask"].shape == (1, 11) and short[0][1]["attention_mask"].shape == (1, 7)
