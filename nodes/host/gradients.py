"""Differentiating through a model that the host loaded for inference.

The executor runs nodes in inference mode, so the weights are inference tensors, which autograd refuses to save; and on
a GPU the host may stream weights through buffers that later layers overwrite, which autograd would not notice. Hence:
weights that stay resident are re-wrapped as normal tensors over the same memory (`make_weights_normal`), and on a GPU
every layer also gets a private clone of its weight for each call (`clone_weights_per_call`), which checkpointing keeps
short-lived.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.ldm.modules.attention
import comfy.ldm.modules.diffusionmodules.openaimodel as unet
import comfy.model_management as management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Memory of a pass with gradients, in passes without: activations of the whole network, or of its block borders.
ROOM_PLAIN, ROOM_CHECKPOINTED = 10, 3


def normal_tensor(x: Tensor) -> Tensor:
    """A normal tensor over the memory of an inference tensor. Must run outside inference mode."""
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(
        x.untyped_storage(), x.storage_offset(), x.size(), x.stride()
    )


def make_weights_normal(module: nn.Module) -> None:
    """Makes the resident parameters and buffers of a module usable by autograd, in place and at no cost.

    Other users of the module see the same values. Modules whose weights live in the host's paged memory (`_v`) are
    left alone: `clone_weights_per_call` serves those.
    """
    for part in module.modules():
        if hasattr(part, "_v"):
            continue
        for name, value in part._parameters.items():
            if value is not None and value.is_inference():
                part._parameters[name] = nn.Parameter(normal_tensor(value), requires_grad=False)
        for name, value in part._buffers.items():
            if value is not None and value.is_inference():
                part._buffers[name] = normal_tensor(value)


def clone_weights_per_call(patcher: ModelPatcher) -> None:
    """Gives each layer of a cloned patcher its own copy of its weights at every call."""
    for name, module in patcher.model.diffusion_model.named_modules():
        if not hasattr(module, "comfy_cast_weights"):
            continue
        for kind in ("weight", "bias"):
            if getattr(module, kind, None) is not None:
                patcher.add_weight_wrapper(f"diffusion_model.{name}.{kind}", lambda w: w.detach().clone())


def raise_memory_estimate(patcher: ModelPatcher, times: int) -> None:
    """Lets the host free memory for `times` the batch before it loads a cloned patcher's model."""

    def prepare(executor, model, noise_shape, *args, **kwargs):
        return executor(model, [noise_shape[0] * times, *noise_shape[1:]], *args, **kwargs)

    patcher.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "mirror_gradients", prepare)


class Addend(Tensor):
    """A ControlNet's residual: `h += residual` makes a new h, and leaves alone the one that autograd has saved."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            plain = [a.as_subclass(Tensor) if isinstance(a, cls) else a for a in args]
            return (Tensor.add if func is Tensor.add_ else func)(*plain, **(kwargs or {}))


def add_control_out_of_place(patcher: ModelPatcher) -> None:
    """The host's networks add ControlNet residuals in place; with gradients, a cloned patcher's no longer do."""

    def apply(executor, x, t, c_concat=None, c_crossattn=None, control=None, *args, **kwargs):
        if control is not None and torch.is_grad_enabled():
            control = {
                name: [r if r is None else r.as_subclass(Addend) for r in residuals]
                for name, residuals in control.items()
            }
        return executor(x, t, c_concat, c_crossattn, control, *args, **kwargs)

    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "mirror_gradients", apply)


def differentiable(model_options: dict) -> dict:
    """Model options whose attention has a backward: torch's own, since some of the host's kernels have none."""
    earlier = model_options.get("transformer_options", {}).get("optimized_attention_override")
    pytorch = comfy.ldm.modules.attention.attention_pytorch

    def override(func, *args, **kwargs):
        return pytorch(*args, **kwargs) if earlier is None else earlier(pytorch, *args, **kwargs)

    transformer_options = {**model_options.get("transformer_options", {}), "optimized_attention_override": override}
    return {**model_options, "transformer_options": transformer_options}


@contextmanager
def differentiable_blocks(network: nn.Module, checkpointed: bool) -> Iterator[None]:
    """While open, the network's blocks can be differentiated through; `checkpointed`, they keep only their inputs and
    run again in the backward pass.

    Only the forward pass must happen inside; nothing stays patched afterwards, also when it is interrupted.
    """
    blocks = [block for block in network.modules() if isinstance(block, unet.ResBlock)] + _listed_blocks(network)
    try:
        for block in blocks:
            forward = _differentiable_forward(block.forward)
            block.forward = _checkpointed_forward(forward) if checkpointed else forward
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def _listed_blocks(network: nn.Module) -> list[nn.Module]:
    """Members of the network's module lists that are called as modules: the transformer blocks of UNets and DiTs."""
    lists = [part for part in network.modules() if isinstance(part, nn.ModuleList)]
    members = [block for part in lists for block in part if not isinstance(block, (nn.Sequential, nn.ModuleList))]
    nested = {id(inner) for block in members for inner in block.modules() if inner is not block}
    return [block for block in members if id(block) not in nested and any(True for _ in block.parameters())]


class BlockInput(Tensor):
    """A block's input: `x += y` makes a new x. Flux's blocks add in place to what autograd, or a checkpoint, keeps."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if func in OUT_OF_PLACE:
                return OUT_OF_PLACE[func](*args, **(kwargs or {})).as_subclass(cls)
            return func(*args, **(kwargs or {}))


OUT_OF_PLACE = {Tensor.add_: Tensor.add, Tensor.sub_: Tensor.sub, Tensor.mul_: Tensor.mul, Tensor.div_: Tensor.div}


def _differentiable_forward(forward):
    """`forward` with its inputs protected and the host told to use no kernel that lacks a backward."""

    def entering(x):
        return x.as_subclass(BlockInput) if isinstance(x, Tensor) and x.is_floating_point() else x

    def leaving(x):
        return x.as_subclass(Tensor) if isinstance(x, BlockInput) else x

    def run(*args, **kwargs):
        earlier, management.in_training = management.in_training, True
        try:
            out = forward(*map(entering, args), **{k: entering(v) for k, v in kwargs.items()})
        finally:
            management.in_training = earlier
        return tuple(map(leaving, out)) if isinstance(out, tuple) else leaving(out)

    return run


def _checkpointed_forward(forward):
    def run(*args, **kwargs):
        # the host keeps changing its options dict while it walks the network; the second run must see today's
        args = [dict(a) if isinstance(a, dict) else a for a in args]
        kwargs = {k: dict(v) if isinstance(v, dict) else v for k, v in kwargs.items()}
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run


class BackwardScale:
    """Keeps half-precision gradients in range: scaled up where they enter the network, down where they leave it.

    The factor is a power of two, chosen from the incoming gradient, so it cancels exactly.
    """

    def __init__(self):
        self.factor = 1.0

    def leave(self, x: Tensor) -> Tensor:
        """Passes an input of the network; its gradient is divided by the factor."""
        x = x.clone()
        if x.requires_grad:
            x.register_hook(lambda g: g / self.factor)
        return x

    def enter(self, x: Tensor) -> Tensor:
        """Passes the network's output; its gradient is multiplied by the factor."""

        def scale(g: Tensor) -> Tensor:
            peak = g.abs().max()
            self.factor = torch.exp2(-torch.log2(peak).floor()) if peak > 0 else 1.0
            return g * self.factor

        if x.requires_grad:
            x.register_hook(scale)
        return x
