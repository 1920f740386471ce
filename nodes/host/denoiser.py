"""Running an algorithm inside the host's own sampling.

`run` calls the host's guider with a sampler whose whole body is the algorithm, so that loading, LoRA and other hooks,
ControlNets, model patches, wrappers, memory and clean-up are the host's, exactly as in a stock sampler. The algorithm
gets a `Walk`: the loaded model as a denoiser, with and without gradients.
"""

from collections.abc import Callable
from typing import TypeVar

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...mirror_ops.walks.trajectory import Mirror
from . import gradients
from .attach import SharedNoise, supply
from .compatibility import check_walks
from .conditioning import Conditioning, is_plain, step_windows, stepwise, with_pooled_by_step
from .count import Count
from .processed import Prompt
from .progress import Progress
from .values import check_result
from .walk import Walk

Result = TypeVar("Result")


def run(
    model: ModelPatcher,
    latent: Tensor,
    sigmas: Tensor,
    prompts: dict[str, Conditioning],
    algorithm: Callable[[Walk], Result],
    *,
    evaluations: int,
    by_step: tuple[str, ...] = (),
    pooled_by_step: dict[str, Tensor] | None = None,
    reference: Mirror | SharedNoise | None = None,
    with_gradients: bool = False,
    checkpoint: bool = True,
) -> tuple[Result, Count]:
    """(what `algorithm(walk)` returns, network rows it took). `model` is cloned, never changed.

    latent [B, C, H, W] gives the shape and, to inpainting models, the picture; sigmas [T+1] are what patches see as
    the schedule; `prompts` maps names ("positive", "negative", any other) to CONDITIONING; those named in `by_step` are
    passed step by step, as they leave when rewritten, unless all are so plain that the host makes the same of both;
    `pooled_by_step` maps some of those to pooled outputs [T, entries, B or 1, pooled width]. `reference` is the source
    for controls on the model (attach.py): a mirror, or SHARED_NOISE if the walk evaluates it itself. `evaluations`
    bounds the progress. Raises ValueError, before any work, for prompts that cannot be rewritten or come from another
    model's CLIP, and for models that skip passes; and for a result that is not finite.
    """
    check_walks(model, prompts, latent)
    patcher, count = cloned(model), Count()
    count.attach(patcher)
    supply(patcher, reference)
    if with_gradients:
        gradients.prepare(patcher, checkpoint)
    passed = _passed(patcher, prompts, sigmas, by_step, pooled_by_step or {})

    def walked(guider: comfy.samplers.CFGGuider, sigmas: Tensor, model_options: dict) -> Result:
        _hand_on(guider.conds)
        walk = Walk(guider, sigmas, model_options, Progress(patcher, evaluations), with_gradients, checkpoint)
        family = type(patcher.model).__name__
        walk.prompts = {
            name: Prompt(name, given, passed[name], guider.conds[name], family) for name, given in prompts.items()
        }
        return algorithm(walk)

    result = _in_sampling(patcher, passed, latent, sigmas, walked)
    check_result(result)
    return result, count


def _hand_on(conds: dict) -> None:
    """Gives the negative what it has of the edited prompt: GLIGEN, and a ControlNet that is meant for both sides. The
    host does so from a prompt that is named positive."""
    if "positive" in conds or not {"target", "negative"} <= conds.keys():
        return
    target, negative = conds["target"], conds["negative"]
    if all("area" in entry for entry in negative):  # which the host's function takes for granted
        return
    both = [entry for entry in target if entry.get("control_apply_to_uncond", False)]
    for entries, name in ((both, "control"), (target, "gligen")):
        comfy.samplers.apply_empty_x_to_equal_area(entries, negative, name, lambda values, k: values[k])


def cloned(model: ModelPatcher) -> ModelPatcher:
    """A clone whose parent is the loader's own patcher, which lives as long as the model.

    The host hands what is loaded from a patcher that dies to its parent. A failed node leaves its patchers in a
    reference cycle, where a clone and the clone it was made of die at once: what was loaded would belong to nobody,
    and the host could never unload it.
    """
    patcher, owner = model.clone(), model
    while owner.parent is not None:
        owner = owner.parent
    patcher.parent = owner
    return patcher


def _passed(
    patcher: ModelPatcher, prompts: dict[str, Conditioning], sigmas: Tensor, by_step: tuple[str, ...],
    pooled_by_step: dict[str, Tensor],
) -> dict[str, Conditioning]:
    """The prompts as the host gets them."""
    if not pooled_by_step and all(map(is_plain, prompts.values())):
        return prompts
    sampling = patcher.get_model_object("model_sampling")
    named = [name for name in by_step if name in prompts]
    steps = step_windows(sigmas, sampling) if named else []
    stepped = {name: stepwise(prompts[name], sigmas, sampling, steps) for name in named}
    pooled = {name: with_pooled_by_step(stepped[name], pooled) for name, pooled in pooled_by_step.items()}
    return {**prompts, **stepped, **pooled}


def _in_sampling(
    patcher: ModelPatcher, prompts: dict[str, Conditioning], latent: Tensor, sigmas: Tensor, body: Callable
) -> Result:
    """body(guider, sigmas, model options) in the place of a sampler, outside inference mode."""
    guider, found = comfy.samplers.CFGGuider(patcher), []
    guider.inner_set_conds(prompts)

    def sample(denoiser, x, sigmas, extra_args, callback, disable):
        conds = guider.conds
        try:
            found.append(body(guider, sigmas, extra_args["model_options"]))
        finally:
            guider.conds = conds
        return x

    # Leaving inference mode also enables gradients; only those who ask for them shall have them.
    with torch.inference_mode(False), torch.no_grad():
        latent = latent.clone()
        sampler = comfy.samplers.KSAMPLER(sample)
        guider.sample(torch.zeros_like(latent), latent, sampler, sigmas.clone(), disable_pbar=True, seed=0)
    return found[0]
