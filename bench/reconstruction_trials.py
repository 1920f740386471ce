"""What was tried on the way to the rewriter `fixed point + negative prompt`: displacement and cost of each idea.

All walk the same grid at the same guidance as `bench reconstruction`, from the same recorded inversion unless an idea
changes that. Gauss-Newton multiplies with the Jacobian of the move and its transpose by differentiating twice.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mirror_ops.measure.metrics import relative_displacement
from mirror_ops.rewriting.redescribe import Rewritten, redescribe
from mirror_ops.rewriting.rewriters import Adam, FixedPoint, Keep, NegativePrompt, adam_update, loss_gradient, null_text

from .reconstruction_methods import SCHEDULER, Batch, batch_of
from .table import show, write
from .world import world


def rows(x: Tensor) -> Tensor:
    """[B] in a shape that broadcasts against embeddings [B, tokens, width]."""
    return x[:, None, None]


@dataclass(frozen=True)
class Descent(Adam):
    """Adam with one thing changed."""

    relative: float = 0.0  # stop once the loss is below this share of the step's first loss
    carried: bool = False  # keep the moments from step to step
    restart: bool = False  # begin each step at the caption
    shared: bool = False  # one vector that all tokens share
    tokens: int | None = None  # only so many first tokens
    after: float = 0.0  # leave the prompt alone before this part of the walk
    memory: dict = field(default_factory=dict)

    def __call__(self, move: Callable, target: Tensor, embedding: Tensor, progress: float) -> Rewritten:
        if progress == 0:
            self.memory.update(caption=embedding, moments=(torch.zeros_like(embedding),) * 2)
        if progress < self.after:
            return Rewritten(embedding, None, 0)
        embedding = self.memory["caption"] if self.restart else embedding
        first, second = self.memory["moments"] if self.carried else (torch.zeros_like(embedding),) * 2
        rate, opening = self.rate * (1 - progress / 2), None
        for k in range(1, self.steps + 1):
            losses, gradient = loss_gradient(move, target, embedding)
            opening = losses if opening is None else opening
            update, first, second = adam_update(self.kept(gradient), first, second, k)
            embedding = embedding - torch.where(rows(losses >= self.relative * opening), rate * update, 0)
            if bool((losses < self.relative * opening).all()):
                break
        self.memory["moments"] = first, second
        return Rewritten(embedding, None, k)

    def kept(self, gradient: Tensor) -> Tensor:
        if self.shared:
            return gradient.mean(dim=1, keepdim=True).expand_as(gradient)
        if self.tokens is not None:
            return torch.cat([gradient[:, : self.tokens], torch.zeros_like(gradient[:, self.tokens :])], dim=1)
        return gradient


@dataclass(frozen=True)
class Lbfgs(Keep):
    """torch's L-BFGS, some iterations a step."""

    steps: int = 4
    most = property(lambda self: self.steps + 1)

    def __call__(self, move: Callable, target: Tensor, embedding: Tensor, progress: float) -> Rewritten:
        leaf = embedding.detach().clone().requires_grad_(True)
        solver = torch.optim.LBFGS([leaf], max_iter=self.steps, tolerance_grad=0, tolerance_change=0)
        count = 0

        def closure() -> Tensor:
            nonlocal count
            count += 1
            with torch.enable_grad():
                loss = (move(leaf) - target).square().sum()
                (leaf.grad,) = torch.autograd.grad(loss, leaf)
            return loss.detach()

        solver.step(closure)
        return Rewritten(leaf.detach(), None, count)


@dataclass(frozen=True)
class GaussNewton(Keep):
    """Damped Gauss-Newton: conjugate gradients on (J J' + damping) y = -residual, update J' y."""

    steps: int = 1
    inner: int = 4
    damping: float = 0.1
    largest: float = 0.05  # root mean square of an update
    uncounted: list = field(default_factory=list)  # rows of backward passes made by differentiating twice
    most = property(lambda self: self.steps)

    def __call__(self, move: Callable, target: Tensor, embedding: Tensor, progress: float) -> Rewritten:
        for _ in range(self.steps):
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                leaf = embedding.detach().clone().requires_grad_(True)
                residual = move(leaf) - target
                probe = torch.zeros_like(residual, requires_grad=True)
                (pulled,) = torch.autograd.grad(residual, leaf, probe, create_graph=True)

                def pull(y: Tensor, residual=residual, leaf=leaf) -> Tensor:
                    return torch.autograd.grad(residual, leaf, y, retain_graph=True)[0]

                def push(d: Tensor, pulled=pulled, probe=probe) -> Tensor:
                    self.uncounted.append(2 * len(d))  # through the backward pass of a forward pass
                    return torch.autograd.grad(pulled, probe, d, retain_graph=True)[0]

                update = self.solve(pull, push, residual.detach())
            size = rows(update.square().flatten(1).mean(dim=1).sqrt())
            embedding = embedding + update * (self.largest / size).clamp(max=1)
        return Rewritten(embedding, None, self.steps)

    def solve(self, pull: Callable, push: Callable, residual: Tensor) -> Tensor:
        def dot(a: Tensor, b: Tensor) -> Tensor:
            return (a * b).flatten(1).sum(dim=1)[:, None, None, None]

        y, left = torch.zeros_like(residual), -residual
        way, damping = left, None
        for _ in range(self.inner):
            pulled = pull(way)
            if damping is None:
                damping = self.damping * dot(pulled, pulled) / dot(way, way)
            mapped = push(pulled) + damping * way
            step = dot(left, left) / dot(way, mapped)
            y, fresh = y + step * way, left - step * mapped
            way = fresh + dot(fresh, fresh) / dot(left, left) * way
            left = fresh
        return pull(y)


def full(**settings) -> Adam:
    return Adam(early_stop=False, **settings)


# name -> (rewriter, how the walk is made)
TRIALS: dict[str, tuple[Keep, dict]] = {
    "ddim": (Keep(), {}),
    "paper": (Adam(), {}),
    "paper full": (full(), {}),
    "Adam, 3 steps": (full(steps=3), {}),
    "Adam, relative stop .3": (Descent(relative=0.3), {}),
    "Adam, 3 steps, moments carried": (Descent(steps=3, carried=True), {}),
    "Adam, from the caption at each step": (Descent(restart=True), {}),
    "Adam, from the recorded latent": (full(steps=3), {"forced": True}),
    "Adam, one vector for all tokens": (Descent(shared=True), {}),
    "Adam, first 8 tokens": (Descent(tokens=8), {}),
    "Adam, second half of the walk only": (Descent(after=0.5), {}),
    "L-BFGS, 4 iterations": (Lbfgs(), {}),
    "Gauss-Newton, 1 x 4 CG": (GaussNewton(), {}),
    "Gauss-Newton, 1 x 4 CG, damping .01": (GaussNewton(damping=0.01, largest=0.2), {}),
    "fixed point 2, then paper": (Adam(), {"refine": 2}),
    "fixed point 2, then Adam, 3 steps": (full(steps=3), {"refine": 2}),
    "negative prompt": (NegativePrompt(), {}),
    "negative prompt, then null text, 1 step": (Adam("null text", "negative", steps=1, early_stop=False), {}),
    "fixed point 2 + negative prompt, then null text, 1 step":
        (Adam("null text", "negative", steps=1, early_stop=False), {"refine": 2}),
    "fixed point 2, null text": (null_text(), {"refine": 2}),
    "ours (fixed point 2 + negative prompt)": (FixedPoint(), {"refine": 2}),
    "ours, averaged": (FixedPoint(), {"refine": 2, "mixing": "averaged"}),
    "ours, 5 iterations": (FixedPoint(), {"refine": 5}),
    "ours, 5 iterations, Anderson": (FixedPoint(), {"refine": 5, "mixing": "anderson"}),
    "ours, network in float16": (FixedPoint(), {"refine": 2, "dtype": torch.float16}),
}


def attempt(name: str, batch: Batch, cfg: float, steps: int) -> dict:
    """One row: mean displacement of the picture's latent and passes a picture."""
    rewriter, how = TRIALS[name]
    rewriter, pack = rewriter.at(cfg), world().host.pack_module("nodes.mirror.invert")
    model = world().model.clone()
    if "dtype" in how:
        model.set_model_compute_dtype(how["dtype"])
    sigmas = pack.families.noise_levels(model, SCHEDULER, steps)
    plan = pack.Plan(pack.families.input_scale(model), cfg, rewriter, pack.TARGET, how.get("refine", 0),
                     how.get("mixing", "plain"), "off")
    negative = batch.positive if rewriter.start == "positive" and rewriter.side == "negative" else batch.negative
    prompts = {"positive": batch.positive} if cfg == 1 else {"positive": batch.positive, "negative": negative}

    def algorithm(walk) -> tuple:
        latents, _ = pack._invert(walk, walk.latent_in(batch.latent["samples"]), plan)
        return latents, (_forced if how.get("forced") else pack._redescribe)(walk, latents, plan)

    (latents, back), count = pack.run(
        model, batch.latent["samples"], sigmas, prompts, algorithm, evaluations=10_000, by_step=(rewriter.side,),
        with_gradients=rewriter.most > 0, checkpoint=False)
    lost, size = relative_displacement(back.reconstruction[-1], latents[-1]), len(batch.numbers)
    backwards = count.backwards + sum(getattr(rewriter, "uncounted", []))
    return {"idea": name, "displacement": lost.mean().item(), "worst": lost.max().item(),
            "forwards": count.forwards / size, "backwards": backwards / size}


def _forced(walk, latents: Tensor, plan):
    """Each step's prompt is found from the recorded latent; then they are all walked in one go."""
    prompt, negative = walk.prompts["positive"], walk.prompts["negative"].entries

    def denoise(x: Tensor, sigma: Tensor, embedding: Tensor) -> Tensor:
        return walk.denoise(x, sigma, prompt.saying(embedding), negative, plan.cfg, hold=negative)

    embedding, found, steps = prompt.embedding, [], len(walk.sigmas) - 1
    for i in range(steps):
        piece = slice(i, i + 2)
        step = redescribe(denoise, walk.sigmas[piece], latents[piece], embedding,
                          lambda m, t, e, _, i=i: plan.rewriter(m, t, e, i / steps), input_scale=plan.scale)
        embedding = step.embeddings[0]
        found.append(embedding)
    ready = iter(found)
    return redescribe(denoise, walk.sigmas, latents, prompt.embedding,
                      lambda *_: Rewritten(next(ready), None, 0), input_scale=plan.scale)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench reconstruction-trials", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, default=5.0)
    parser.add_argument("--only", nargs="+", default=list(TRIALS), metavar="IDEA", choices=TRIALS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if args.cfg == 1:
        parser.error("these ideas are about guidance: give another --cfg than 1")
    found = []
    with torch.inference_mode():
        batch = batch_of(list(range(args.scenes)))
        for k, name in enumerate(args.only):
            print(f"{k}/{len(args.only)}  {name}", flush=True)
            found.append(attempt(name, batch, args.cfg, args.steps))
            write(args.json, {"cfg": args.cfg, "scenes": args.scenes, "steps": args.steps, "rows": found})
    show(found, f"trials at cfg {args.cfg:g}, {args.scenes} held-out scenes, {args.steps} steps, means a picture")
    return 0
