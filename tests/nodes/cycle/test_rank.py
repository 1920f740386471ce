"""CycleDiffusionRank in the real executor: all candidates, their scores by another way, and the best one."""

from itertools import product

import pytest
import torch
from support import tiny
from support.judge import eye
from support.tiny import Scene

from harness.graph import give, node
from harness.results import GraphFailed, GraphRejected

WORDS = "a photo of a cat", "a photo of a red dog"


def photos():
    return torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(4))


class Judged(Scene):
    def __init__(self):
        super().__init__(steps=4)
        self.vae = self.add(give(tiny.vae, "VAE"))()
        self.image = self.add(give(photos, "IMAGE"))()
        self.judge = {"clip_vision": self.add(give(eye, "CLIP_VISION"))(), "clip": self.add(give(tiny.clip, "CLIP"))(),
                      "source_text": WORDS[0], "target_text": WORDS[1]}
        self.latent = self.add("VAEEncode", pixels=self.image, vae=self.vae)()
        self.target = self.text(WORDS[1])

    def edit(self, seed, cfg, strength):
        """One candidate by itself."""
        return self.add("CycleDiffusionEdit", model=self.model, source=self.source, target=self.target,
                        latent=self.latent, negative=self.empty, encoder="dpm-encoder", encoder__seed=seed,
                        encoder__eta=0.3, source_cfg=1.0, cfg=cfg, denoise=strength,
                        **{**self.grid, "steps": round(4 * strength)})

    def rank(self, **changes):
        inputs = {"model": self.model, "vae": self.vae, "image": self.image, "source": self.source,
                  "target": self.target, "negative": self.empty, "encoder": "dpm-encoder", "encoder__seed": 5,
                  "encoder__eta": 0.3, "trials": 2, "source_cfgs": "1", "cfgs": "1, 4", "strengths": "0.5,1",
                  **self.judge, **self.grid}
        return self.add("CycleDiffusionRank", **{**inputs, **changes})


def candidates(table):
    """[(score, trial, source_cfg, cfg, strength, pictures it is best for)]"""
    rows = [line.split(None, 5) for line in table.splitlines()[2:]]
    return [(float(row[0]), int(row[1]), *map(float, row[2:5]), row[5] if len(row) > 5 else "") for row in rows]


@pytest.mark.every_host
def test_every_candidate_is_scored_and_the_best_is_what_comes_out(run_graph):
    scene = Judged()
    made = scene.rank()
    metrics = scene.add("MirrorMetrics", image=made(0), reference=scene.image, **scene.judge)
    run = run_graph(scene, cached=True)
    _, latent, score, table = run.outputs[made.id]
    rows = candidates(table)
    assert {row[1:5] for row in rows} == set(product((1, 2), (1.0,), (1.0, 4.0), (0.5, 1.0)))
    assert [row[0] for row in rows] == sorted((row[0] for row in rows), reverse=True)
    assert score == pytest.approx(run.outputs[metrics.id][8], abs=1e-3), "MirrorMetrics judges the same"
    winners = {int(number) - 1: row for row in rows for number in row[5].split(", ") if number}
    assert set(winners) == {0, 1}
    edits = {picture: scene.edit(4 + trial, cfg, part) for picture, (_, trial, _, cfg, part, _) in winners.items()}
    again = run_graph(scene, cached=True)
    for picture, edit in edits.items():
        alone = again.outputs[edit.id][0]["samples"][picture]
        assert (latent["samples"][picture] - alone).norm() < 1e-5 * alone.norm()
    assert table.startswith(f"best of 8 by the score itself: {score:.4f}")
    assert score >= rows[0][0] - 1e-4


@pytest.mark.parametrize("change, message", [
    ({"cfgs": "1; 2"}, "takes numbers with commas"), ({"cfgs": " "}, "takes numbers"),
    ({"strengths": "0.5, 2"}, "above 0 and at most 1"), ({"target_text": ""}, "`target_text` is empty")])
def test_bad_lists_and_missing_words_are_refused(run_graph, change, message):
    scene = Judged()
    scene.rank(**change)
    with pytest.raises(GraphRejected, match=message):
        run_graph(scene)


def test_guidance_in_the_list_needs_a_negative(run_graph):
    scene = Judged()
    made = scene.rank()
    del scene[made.id]["inputs"]["negative"]
    with pytest.raises(GraphRejected, match="needs a negative prompt"):
        run_graph(scene)


def test_a_candidate_that_is_not_finite_is_no_picture_and_never_wins(run_graph):
    """A target prompt that this network answers with NaN once its guidance is above 1: those candidates are left out,
    and where no candidate is left the node says so."""
    def fragile():
        def at_high_guidance(args):
            guided = args["cond"] - args["uncond"]
            return args["uncond"] + guided * (args["cond_scale"] if args["cond_scale"] < 4 else float("nan"))

        model = tiny.unet()
        model.set_model_sampler_cfg_function(at_high_guidance)
        return model

    scene = Judged()
    model = scene.add(give(fragile, "MODEL"))()
    made = scene.rank(model=model, strengths="0.5", trials=1)
    run = run_graph(scene, cached=True)
    image, _, score, table = run.outputs[made.id]
    assert score == score and torch.isfinite(image).all()
    assert [row[3] for row in candidates(table.rsplit("\n", 1)[0])] == [1.0]
    assert "1 more left the finite numbers" in table
    scene.rank(model=model, strengths="0.5", cfgs="4, 5")
    with pytest.raises(GraphFailed, match="No candidate is a finite picture"):
        run_graph(scene)


def test_a_control_that_reads_the_pictures_side_is_refused_before_any_work(run_graph):
    scene = Judged()
    scene.model = scene.add("MirrorCrossAttentionGuidance", model=scene.model, amount=0.1)()
    scene.rank()
    with pytest.raises(GraphFailed, match="A control node .* CycleDiffusion Rank walks the picture") as failed:
        run_graph(scene)
    assert "CycleDiffusion Edit takes it" in str(failed.value)


def test_prompts_for_another_number_of_pictures_are_refused(run_graph):
    scene = Judged()
    three = scene.add("ConditioningConcat", conditioning_to=scene.source, conditioning_from=scene.source)
    scene.source = scene.add(node(
        lambda conditioning: [[conditioning[0][0].expand(3, -1, -1), conditioning[0][1]]], ("CONDITIONING",),
        {"conditioning": "CONDITIONING"}), conditioning=three())()
    scene.rank()
    with pytest.raises(GraphFailed, match="source.* 3 .*2|3 prompts"):
        run_graph(scene)
