"""Which model a MODEL is: its kind, a fingerprint of its weights, and one of the patches on them.

A fingerprint costs milliseconds: it reads a few numbers from some of the weights, as they are without patches, wherever
they lie (patched in place, offloaded, quantised). It is the same in every process that loads the same file in the same
precision. Patches of weights count (LoRA, merges); those of attention, samplings, wrappers and hooks of a CONDITIONING
do not: nodes put them on a model on purpose.
"""

import hashlib
from collections.abc import Iterator

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...mirror_ops.walks.provenance import ModelIdentity
from ...mirror_ops.walks.trajectory import Mirror
from .families import is_flow, latent_format, sampling_kind
from .notices import warn

TENSORS, VALUES = 64, 64  # how many weights are looked at, and how many numbers of each
SHORT = 12  # characters of a digest


def identity(model: ModelPatcher) -> ModelIdentity:
    """What a trajectory depends on: architecture, prediction, noise schedule, latent space, weights and patches."""
    precision, weights = fingerprint(model, "diffusion_model.")
    schedule = None
    if not is_flow(model):
        sampling = model.get_model_object("model_sampling")
        schedule = f"from {float(sampling.sigma_min):.3g} to {float(sampling.sigma_max):.3g}"
    return ModelIdentity(
        architecture=type(model.model).__name__,
        prediction=model.model.model_type.name,
        sampling=sampling_kind(model),
        latent_format=latent_format(model),
        latent_channels=model.get_model_object("latent_format").latent_channels,
        noise_schedule=schedule,
        precision=precision,
        weights=weights,
        patches=patches_of(model),
    )


def marks(patcher: ModelPatcher) -> list[str]:
    """What tells a VAE or CLIP from others of its kind: precision, weights and patches."""
    return [*fingerprint(patcher), patches_of(patcher)]


def check_made_with(mirror: Mirror, model: ModelPatcher) -> ModelIdentity:
    """The connected model's identity. Raises ValueError, saying what differs, for a model of another kind or with
    other weights than the mirror's; warns of patched weights, which may be the edit itself (a LoRA), and of another
    precision."""
    made_with, connected = mirror.provenance.model, identity(model)
    made_with.require(connected, "This mirror")
    if differences := made_with.differences(connected):
        warn(
            f"This mirror was made with another model: {' and '.join(differences)}. Where that is not the edit that "
            "you mean, connect the model that made it, or invert again; `exact` of Mirror Sample holds the recording."
        )
    return connected


def fingerprint(patcher: ModelPatcher, prefix: str = "") -> tuple[str, str]:
    """(precision, digest) of the unpatched weights whose names begin with `prefix`."""
    named = [(name.replace("_orig_mod.", ""), value) for name, value in patcher.model.named_parameters()]  # compiled
    named = sorted(pair for pair in named if pair[0].startswith(prefix))
    digest, precisions = hashlib.sha256(), set()
    digest.update(repr([(name, tuple(value.shape)) for name, value in named]).encode())
    for name, value in named[:: max(1, len(named) // TENSORS)]:
        kept = patcher.backup.get(name) or patcher.hook_backup.get(name)
        weight = value if kept is None else kept[0]
        precisions.add(str(weight.dtype).removeprefix("torch."))
        digest.update(sampled(weight))
    return "+".join(sorted(precisions)), digest.hexdigest()[:SHORT]


def patches_of(patcher: ModelPatcher) -> str:
    """"" or how many weights are patched, how strongly, and a digest of the patches, whatever order they came in."""
    listed = [
        (key, f"{strength:g}" if of_model == 1 else f"{strength:g} on {of_model:g} of the model", offset, patch)
        for key, patches in sorted(patcher.patches.items())
        for strength, patch, of_model, offset, _ in patches
        if strength != 0 or of_model != 1
    ]
    injected = sorted(name for name in patcher.injections if "lora" in name)  # the host's LoRAs beside the weights
    if not listed and not injected:
        return ""
    keys = sorted({key for key, *_ in listed})
    looked = set(keys[:: max(1, len(keys) // TENSORS)])
    digests = sorted(_digest(*one, look=one[0] in looked) for one in listed)
    digest = hashlib.sha256(b"".join(digests) + repr(injected).encode()).hexdigest()[:SHORT]
    strengths = ", ".join(sorted({strength for _, strength, _, _ in listed}))
    return "; ".join([f"{len(listed)} at {strengths}"] * bool(listed) + injected + [digest])


def _digest(key: str, strength: str, offset, patch, look: bool) -> bytes:
    """Of one patch: what it changes and how strongly, and if `look`, its scales and some numbers of its tensors."""
    content = hashlib.sha256(repr((key, strength, offset)).encode())
    for part in _parts(patch) if look else ():
        is_tensor = isinstance(part, Tensor)
        content.update(repr(tuple(part.shape)).encode() + sampled(part) if is_tensor else repr(part).encode())
    return content.digest()


def _parts(patch) -> Iterator[Tensor | float | str]:
    """Tensors, scales and kinds of a patch, however it is nested: tuples, lists, adapters with `weights`."""
    if isinstance(patch, Tensor | int | float | str):
        yield patch
    elif isinstance(patch, tuple | list):
        for part in patch:
            yield from _parts(part)
    elif hasattr(patch, "weights"):
        yield from _parts(patch.weights)


def sampled(weight: Tensor, values: int = VALUES) -> bytes:
    """Evenly spaced numbers of a tensor as they are stored; of a quantised one, of what it stores."""
    weight = stored(weight.detach())
    if weight.is_meta or weight.numel() == 0:
        return b""
    with torch.inference_mode(False):
        places = torch.linspace(0, weight.numel() - 1, min(values, weight.numel()), dtype=torch.float64).long()
        places = places.to(weight.device)
        flat = weight.is_contiguous()  # three times as quick
        picked = weight.view(-1)[places] if flat else weight[torch.unravel_index(places, weight.shape)]
        return picked.cpu().view(torch.uint8).numpy().tobytes()


def stored(weight: Tensor) -> Tensor:
    """A plain tensor with a weight's stored numbers, without dequantising a subclass."""
    if hasattr(weight, "__tensor_flatten__"):
        names, _ = weight.__tensor_flatten__()
        return stored(getattr(weight, names[0]))
    plain = weight.as_subclass(Tensor)
    return plain.view(torch.uint8) if plain.element_size() == 1 and plain.dtype != torch.uint8 else plain
