"""Whether a CONDITIONING is the one of another day: a digest of all that it tells, the same in every process.

Texts, masks, hints and weights of hooks count to the last number, networks by the fingerprints of identity.py. Objects
count by their kind and what TELLING names of them: the rest of their attributes is what sampling leaves there.
"""

import hashlib
from collections.abc import Iterator
from enum import Enum

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .conditioning import Conditioning
from .identity import SHORT, marks, sampled, stored

TELLING = (
    # ControlNets, T2I adapters, and the VAE that some encode their hint with
    "cond_hint_original", "strength", "strength_type", "timestep_percent_range", "extra_args", "extra_concat_orig",
    "extra_hooks", "previous_controlnet", "control_model_wrapped", "control_weights", "t2i_model", "vae", "patcher",
    # hooks, their keyframes, and adapters of weights
    "hooks", "hook_scope", "hook_keyframe", "keyframes", "start_percent", "guarantee_steps", "_strength_model",
    "_strength_clip", "weights", "weights_clip",
)


def prompt_digest(prompts: dict[str, Conditioning]) -> str:
    """Of prompts by name: their entries' texts and options, ControlNets and hooks included."""
    digest = hashlib.sha256()
    for part in _content(prompts):
        digest.update(part)
    return digest.hexdigest()[:SHORT]


def _content(value) -> Iterator[bytes]:
    """What tells a value from others, kinds and lengths first, so that no two values run together alike."""
    yield f"{type(value).__name__} ".encode()
    if isinstance(value, Tensor):
        yield repr((value.dtype, tuple(value.shape))).encode()
        yield stored(value.detach()).cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif value is None or isinstance(value, bool | int | float | str | bytes | Enum):
        yield f"{value!r} ".encode()
    elif isinstance(value, dict):
        yield from _content(sorted(value.items(), key=lambda pair: repr(pair[0])))
    elif isinstance(value, list | tuple):
        yield f"{len(value)} ".encode()
        for part in value:
            yield from _content(part)
    elif isinstance(value, ModelPatcher):
        yield from _content(marks(value))
    elif isinstance(value, torch.nn.Module):
        yield from _content({name: sampled(weight) for name, weight in value.named_parameters()})
    else:
        told = getattr(value, "__dict__", {})
        yield from _content({name: told[name] for name in TELLING if name in told})
