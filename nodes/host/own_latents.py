"""Several prompts, each at a latent of its own, in one call of the network: quicker than a call each."""

from collections.abc import Sequence

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

_OWN = "mirror_own_latents"


def with_own_latents(model_options: dict, latents: dict[int, Tensor]) -> dict:
    """Model options for comfy.samplers.calc_cond_batch in which prompt k is evaluated at latents[k] [B, C, H, W], those
    without a latent of their own at the one that it is given."""
    options = model_options.get("transformer_options", {})
    wrappers = options.get("wrappers", {})
    applied = {_OWN: [_exchange], **wrappers.get(WrappersMP.APPLY_MODEL, {})}  # outermost: others see what is evaluated
    options = {**options, _OWN: latents, "wrappers": {**wrappers, WrappersMP.APPLY_MODEL: applied}}
    return {**model_options, "transformer_options": options}


def can_share(prompts: Sequence[list[dict] | None]) -> bool:
    """Whether these processed prompts can be evaluated so: no areas, ControlNets or hooks, which see the latent too."""
    entries = [entry for prompt in prompts for entry in prompt or []]
    return not any(entry.get(name) is not None for entry in entries for name in ("area", "control", "hooks"))


def _exchange(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
    """An APPLY_MODEL wrapper: each prompt's rows are its own latent."""
    order, latents = transformer_options["cond_or_uncond"], transformer_options[_OWN]
    x = torch.cat([latents.get(k, rows) for k, rows in zip(order, x.chunk(len(order)), strict=True)])
    return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
