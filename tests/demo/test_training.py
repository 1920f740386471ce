"""Training of the embedded model, a few steps of it: that its stages fit together, and go on where they stopped."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from demo.scene import ATTRIBUTES, HELD_OUT, scene
from harness.environment import ROOT

WEIGHTS = ROOT / "demo" / "weights" / "embedded_world.safetensors"
STAGES = ("vae", "decoder", "diffusion", "classifier", "export")
TRIAL = ("--scenes", "64", "--steps", "2", "--workers", "1")


def train(folder, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "run.py", "train", "--folder", str(folder), *TRIAL, *args], cwd=ROOT, env=os.environ,
        capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_stages_make_a_checkpoint_like_the_shipped_one_and_resume(tmp_path):
    first = train(tmp_path, "--stages", *STAGES)
    made, shipped = load_file(str(tmp_path / "weights" / WEIGHTS.name)), load_file(str(WEIGHTS))
    assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in shipped.items()}
    assert all(f"{name} 2/2" in first for name in ("vae", "decoder", "diffusion", "binding", "marks", "classifier"))
    again = train(tmp_path, "--stages", *STAGES)
    assert "2/2" not in again
    assert all(torch.equal(v, made[k]) for k, v in load_file(str(tmp_path / "weights" / WEIGHTS.name)).items())


@pytest.mark.slow
def test_what_was_made_of_other_weights_is_made_anew(tmp_path):
    """Another autoencoder has other latents; and who trains on what was shipped does not get an earlier end of it."""
    train(tmp_path, "--stages", "vae", "diffusion")
    again = train(tmp_path, "--stages", "vae", "diffusion", "--steps", "3")
    assert len(list(tmp_path.glob("latents-*.npy"))) == 2 and "vae 3/3" in again and "diffusion 3/3" in again
    train(tmp_path, "--stages", "shipped", "decoder")
    first = (tmp_path / "vae-final.pt").read_bytes()
    assert "decoder 2/2" in train(tmp_path, "--stages", "decoder")      # goes on from what is there now
    assert "decoder 2/2" in train(tmp_path, "--stages", "shipped", "decoder")
    assert (tmp_path / "vae-final.pt").read_bytes() == first


@pytest.mark.slow
def test_the_shipped_decoder_is_trained_on_and_nothing_else(tmp_path):
    train(tmp_path, "--stages", "shipped", "decoder", "export")
    made, shipped = load_file(str(tmp_path / "weights" / WEIGHTS.name)), load_file(str(WEIGHTS))
    changed = {k for k in made if not torch.equal(made[k], shipped[k])}
    assert changed and all("decoder" in k or "post_quant_conv" in k for k in changed)


def test_an_edit_of_a_scene_changes_one_attribute(host):
    from demo.training.data import edit_of

    for seed in range(100):
        before, after = scene(seed), edit_of(seed)
        assert sum(getattr(before, name) != getattr(after, name) for name in ATTRIBUTES) == 1
        assert before.nuisance == after.nuisance


def test_cells_of_an_edit_stand_among_those_of_the_scene(tmp_path, host):
    from demo.training.data import EDITS, pictures
    from demo.training.decoder import _edited

    scenes, rng = 4, np.random.default_rng(0)
    before, after = pictures(tmp_path, scenes), pictures(tmp_path, scenes, kind=EDITS)
    kept, changed = np.zeros((scenes, 2, 8, 16, 16), np.float16), np.full((scenes, 2, 8, 16, 16), 100, np.float16)
    x, z = _edited(rng, 16, (before, kept), (after, changed))
    put_in = z.abs().amax(1) > 50
    assert not z[~put_in[:, None].expand_as(z)].any()
    assert 0 < put_in.float().mean() < 1
    assert x.shape == (16, 3, 128, 128)


def test_training_and_held_out_scenes_do_not_mix(tmp_path, host):
    from demo.training.data import pictures

    with pytest.raises(ValueError, match="held-out"):
        pictures(tmp_path, 10, HELD_OUT - 5)
