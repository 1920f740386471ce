"""The model during a run: how often the network is asked, and which prediction is shown."""

import torch
from support.tiny import Scene, unet

from harness.graph import node

SIGMA = torch.tensor(2.0)


def in_a_walk(host, run_graph, algorithm):
    """(what `algorithm(walk)` returns, rows of each call of the network) for two prompts, inside a node."""
    denoiser, rows, found = host.pack_module("nodes.host.denoiser"), [], []

    def counted():
        model = unet()
        model.model.diffusion_model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
        return model

    def execute(model, positive, negative, latent):
        prompts, sigmas = {"positive": positive, "negative": negative}, torch.tensor([2.0, 0.0])
        found.append(denoiser.run(model, latent["samples"], sigmas, prompts, algorithm, evaluations=9)[0])
        return latent

    scene = Scene(counted)
    takes = {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent": "LATENT"}
    scene.add(node(execute, ("LATENT",), takes), model=scene.model, positive=scene.source, negative=scene.empty,
              latent=scene.latent)
    run_graph(scene)
    return found[0], rows


def test_two_sides_take_one_call_and_the_same_side_twice_one_row(host, run_graph):
    Asked = host.pack_module("nodes.host.walk").Asked

    def algorithm(walk):
        positive, negative = (walk.prompts[name].entries for name in ("positive", "negative"))
        x = SIGMA * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        one, other = Asked(x, positive), Asked(x + 1, positive, negative, 3.0)
        pair = walk.denoise_pair(one, other, SIGMA)
        apart = walk.asked(one, SIGMA), walk.asked(other, SIGMA)
        same = walk.denoise_pair(one, Asked(x, positive, positive, 3.0), SIGMA)
        return torch.stack([*pair, *apart, *same])

    (kept, edited, one, other, *same), rows = in_a_walk(host, run_graph, algorithm)
    assert rows == [3, 1, 2, 1], "guidance by the positive itself is none"
    assert torch.allclose(kept, one, atol=1e-5) and torch.allclose(edited, other, atol=1e-5)
    assert (one - other).abs().max() > 1e-2
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], one)


def test_a_prompt_that_stays_is_asked_once_for_each_latent(host, run_graph):
    def algorithm(walk):
        positive, negative = (walk.prompts[name].entries for name in ("positive", "negative"))
        x = SIGMA * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        held = [walk.denoise(x, SIGMA, positive, negative, 3.0, hold=negative) for _ in range(3)]
        other = walk.denoise(x + 1, SIGMA, positive, negative, 3.0, hold=negative)
        free = [walk.denoise(y, SIGMA, positive, negative, 3.0) for y in (x, x + 1)]
        return torch.stack([*held, other, *free])

    (*held, other, free, free_other), rows = in_a_walk(host, run_graph, algorithm)
    assert rows == [1] * (2 + 1 + 1 + 2) + [2, 2]
    assert all(torch.allclose(one, free, atol=1e-5) for one in held) and torch.allclose(other, free_other, atol=1e-5)


def test_what_shows_is_the_edit(host, monkeypatch):
    progress = host.pack_module("nodes.host.progress")
    shown, reached = [], progress.Progress.reached
    monkeypatch.setattr(progress.Progress, "reached", lambda self, done, denoised: (
        shown.append(denoised), reached(self, done, denoised)))
    scene = Scene(steps=3)
    made = scene.sample(scene.invert(Scene.NONE), positive=scene.text("a red dog"), cfg=2.0)
    run = host.run_graph(scene)
    # the last step ends where the network sees the edited picture
    assert torch.allclose(shown[-1] / 0.18215, run.outputs[made.id][0]["samples"], atol=1e-3)


def test_a_rewritten_prompt_is_given_step_by_step_only_where_the_host_could_tell(host, run_graph):
    """Else the host would look through an entry of each step at every pass."""
    denoiser = host.pack_module("nodes.host.denoiser")
    corner = {"area": (4, 4, 0, 0), "strength": 1.0}

    def entries(**beside):
        seen = []

        def execute(model, positive, negative, latent):
            prompts = {"positive": positive, "negative": [[negative[0][0], {**negative[0][1], **beside}]]}
            denoiser.run(
                model, latent["samples"], torch.tensor([2.0, 1.0, 0.0]), prompts, evaluations=1, by_step=("positive",),
                algorithm=lambda walk: seen.append(len(walk.prompts["positive"].entries)) or torch.zeros(1))
            return latent

        scene = Scene()
        takes = {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent": "LATENT"}
        scene.add(node(execute, ("LATENT",), takes), model=scene.model, positive=scene.source, negative=scene.empty,
                  latent=scene.latent)
        run_graph(scene)
        return seen[0]

    assert entries() == 1
    assert entries(start_percent=0.0, end_percent=1.0) == 2
    assert entries(**corner) >= 2
