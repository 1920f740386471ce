"""Saved mirrors: one that an earlier version of the pack wrote, and files that do not hold what they should."""

import dataclasses
import shutil

import pytest
import torch
from support.tiny import Scene, deep, sdxl

from harness.environment import ROOT
from harness.results import GraphFailed
from mirror_ops.measure.metrics import relative_displacement
from mirror_ops.walks.trajectory import load_mirror, save_mirror

OLD = ROOT / "tests" / "data" / "mirror-v1.safetensors"  # support.tiny's scene, 2 steps, as version 1 wrote it


def loaded(scene, host, mirror=None, name="old.safetensors"):
    target = host.base / "input" / name
    if mirror is None:
        shutil.copy(OLD, target)
    else:
        save_mirror(mirror, target)
    return scene.add("MirrorLoadTrajectory", file=name)


def sampled(scene, made, **changes):
    return scene.sample(lambda slot: made(), **{"strength": 0.0, "cfg": 1.0, **changes})


def test_a_mirror_of_the_first_version_still_walks(run_graph, host):
    scene = Scene(deep, steps=2)
    made = loaded(scene, host)
    back = sampled(scene, made)
    report = scene.add("MirrorReport", mirror=made())
    new = scene.invert(Scene.PAPER)
    run = run_graph(scene)
    old, new = run.outputs[made.id][0], run.outputs[new.id][2]
    assert dataclasses.replace(old.provenance, losses=new.provenance.losses) == new.provenance, "the same fingerprints"
    assert torch.allclose(torch.tensor(old.provenance.losses), torch.tensor(new.provenance.losses), rtol=1e-4)
    assert relative_displacement(old.latents, new.latents).max() < 1e-4
    walked = run.outputs[back.id][1]["samples"]
    assert relative_displacement(walked * 0.18215, old.reconstruction[-1]).max() < 1e-4
    assert run.outputs[report.id][1] == pytest.approx(old.displacement[-1].item())


def test_files_for_another_family_or_with_broken_contents_are_refused(run_graph, host):
    def failure(scene, made):
        sampled(scene, made)
        with pytest.raises(GraphFailed) as caught:
            run_graph(scene)
        return caught.value.text

    scene = Scene(sdxl, steps=2)
    assert "whose architecture is BaseModel; the connected model's is SDXL" in failure(scene, loaded(scene, host))

    mirror = load_mirror(OLD)
    broken = {
        "noise levels must fall": {"sigmas": mirror.sigmas.flip(0)},
        "2 steps cannot hold latents": {"latents": mirror.latents[:2]},
        "cannot hold prompts": {"embeddings": mirror.embeddings[:1]},
    }
    for words, changes in broken.items():
        shell = dataclasses.replace(mirror)
        for name, value in changes.items():
            object.__setattr__(shell, name, value)  # past the checks, as a damaged file would be
        scene = Scene(steps=2)
        assert words in failure(scene, loaded(scene, host, shell, "broken.safetensors"))
    (host.base / "input" / "cut.safetensors").write_bytes(OLD.read_bytes()[:5000])
    scene = Scene(steps=2)
    made = scene.add("MirrorLoadTrajectory", file="cut.safetensors")
    assert "cut.safetensors is damaged or no safetensors file" in failure(scene, made)
    assert torch.equal(load_mirror(OLD).latents, mirror.latents)
