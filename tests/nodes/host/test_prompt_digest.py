"""What a digest of prompts notices, and that it is the same for the same prompt of another day."""

import pytest
import torch
from support import tiny


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def controlled(hint=0, strength=1.0, end=1.0, seed=7, previous=None):
    control = tiny.controlnet(seed).copy().set_cond_hint(noise(1, 3, 64, 64, seed=hint), strength, (0.0, end))
    return control.set_previous_controlnet(previous)


def hooked(seed=0, strength=1.0, start=0.5):
    import comfy.hooks

    hook, keyframes = comfy.hooks.WeightHook(strength, 1.0), comfy.hooks.HookKeyframeGroup()
    hook.weights = {"to_q.lora_up.weight": noise(8, 2, seed=seed)}
    keyframes.add(comfy.hooks.HookKeyframe(1.0, start))
    hook.hook_keyframe, group = keyframes, comfy.hooks.HookGroup()
    group.add(hook)
    return group


def mask(cell=None):
    made = torch.zeros(1, 64, 64)
    if cell is not None:
        made[0, cell, cell] = 1
    return made


SETS = {
    "texts and plain values": [
        lambda: {"x": [[noise(1, 77, 8), {}]]},
        lambda: {"x": [[noise(1, 77, 8, seed=1), {}]]},
        lambda: {"y": [[noise(1, 77, 8), {}]]},
        lambda: {"x": [[noise(1, 77, 8), {}]] * 2},
        lambda: {"x": [[noise(1, 77, 8), {"area": (8, 8, 0, 0)}]]},
        lambda: {"x": [[noise(1, 77, 8), {"area": (8, 8, 0, 4)}]]},
        lambda: {"x": [[noise(1, 77, 8), {"strength": 0.5, "default": True}]]},
        lambda: {"x": [[noise(1, 77, 8), {"pooled_output": noise(1, 8)}]]},
        lambda: {"x": [[noise(1, 77, 8), {"pooled_output": noise(1, 8, seed=1).half()}]]},
    ],
    "masks, which may differ in a single pixel": [
        lambda: {"x": [[noise(1, 2, 8), {"mask": mask()}]]},
        lambda: {"x": [[noise(1, 2, 8), {"mask": mask(7)}]]},
        lambda: {"x": [[noise(1, 2, 8), {"mask": mask(8)}]]},
        lambda: {"x": [[noise(1, 2, 8), {"mask": mask(8) > 0}]]},
    ],
    "ControlNets": [
        lambda: {"x": [[noise(1, 2, 8), {"control": controlled()}]]},
        lambda: {"x": [[noise(1, 2, 8), {"control": controlled(hint=1)}]]},
        lambda: {"x": [[noise(1, 2, 8), {"control": controlled(strength=0.5)}]]},
        lambda: {"x": [[noise(1, 2, 8), {"control": controlled(end=0.5)}]]},
        lambda: {"x": [[noise(1, 2, 8), {"control": controlled(seed=8)}]]},
        lambda: {"x": [[noise(1, 2, 8), {"control": controlled(previous=controlled(hint=1))}]]},
    ],
    "hooks": [
        lambda: {"x": [[noise(1, 2, 8), {"hooks": hooked()}]]},
        lambda: {"x": [[noise(1, 2, 8), {"hooks": hooked(seed=1)}]]},
        lambda: {"x": [[noise(1, 2, 8), {"hooks": hooked(strength=0.5)}]]},
        lambda: {"x": [[noise(1, 2, 8), {"hooks": hooked(start=0.2)}]]},
    ],
}


@pytest.mark.parametrize("kind", SETS)
def test_every_difference_is_another_digest_and_the_same_again_is_not(host, kind):
    digest = host.pack_module("nodes.host.prompt_digest").prompt_digest
    found = [digest(make()) for make in SETS[kind]]
    assert len(set(found)) == len(found)
    assert [digest(make()) for make in SETS[kind]] == found


def test_what_sampling_leaves_on_controls_and_hooks_does_not_count(host):
    digest = host.pack_module("nodes.host.prompt_digest").prompt_digest
    prompts = {"x": [[noise(1, 2, 8), {"control": controlled(), "hooks": hooked()}]]}
    before = digest(prompts)
    options = prompts["x"][0][1]
    options["control"].cond_hint, options["control"].timestep_range = noise(1, 3, 8, 8), (999.0, 0.0)
    options["hooks"].hooks[0].hook_keyframe._current_used_steps = 3
    options["hooks"].hooks[0].hook_keyframe.keyframes[0].start_t = 500.0
    assert digest(prompts) == before
