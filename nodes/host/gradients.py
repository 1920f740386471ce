"""Differentiating through a model that the host loaded for inference, without changing what others share.

The executor runs nodes in inference mode, so weights, prompts and latents are inference tensors, which autograd refuses
to save; on a GPU the host may stream weights through buffers that later layers overwrite, which autograd does not
notice; and layers with quantised weights quantise their input too. Hence `Differentiable`, in whose passes weights, or
all that torch functions are given, are normal tensors over the same memory, and `private_weights`, by which the host
itself gives a cloned patcher's layers copies of their weights where that is needed. No parameter is changed.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TypeVar

import comfy.ldm.modules.diffusionmodules.openaimodel as unet
import comfy.model_management as management
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.checkpoint import checkpoint

from .out_of_place import with_protected_inputs

KEY = "mirror_gradients"
Result = TypeVar("Result")
REFUSED = "nference tensor"  # in what torch says of tensors that autograd cannot save, or that cannot be written to
TIDY = (unet.ResBlock, BasicTransformerBlock)  # which write to nothing that they were given
NO_BACKWARD = ("PixelDiTT2I", "ErnieImage")  # whose networks write to what autograd needs, or have kernels without it
# Memory of a pass with gradients, in passes without: activations of the whole network, or of its block borders.
ROOM_PLAIN, ROOM_CHECKPOINTED = 10, 3


def normal_tensor(x: Tensor) -> Tensor:
    """A normal tensor over the memory of an inference tensor, of the same subclass and with its attributes.

    Must run outside inference mode. Not for wrapper subclasses, which have no memory of their own.
    """
    with torch._C.DisableTorchFunctionSubclass():
        alias = torch.empty(0, dtype=x.dtype, device=x.device)
        alias.set_(x.untyped_storage(), x.storage_offset(), Tensor.size(x), Tensor.stride(x))
        if type(x) in (Tensor, nn.Parameter):
            return alias
        alias = alias.as_subclass(type(x))
    alias.__dict__.update(x.__dict__)
    return alias


def _normal(x):
    """`x` as an argument that autograd can save; lists and tuples of tensors too."""
    if isinstance(x, Tensor):
        return normal_tensor(x) if x.is_inference() and not is_traceable_wrapper_subclass(x) else x
    if type(x) in (list, tuple) and x and isinstance(x[0], Tensor):
        return type(x)(map(_normal, x))
    return x


class NormalTensors(TorchFunctionMode):
    """While open, torch functions are given normal tensors instead of inference tensors, over the same memory."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", None) == "__set__":
            return func(*args, **(kwargs or {}))
        args = [_normal(a) for a in args]
        return func(*args, **{k: _normal(v) for k, v in kwargs.items()}) if kwargs else func(*args)


class NormalWeights:
    """A network's parameters and buffers as normal tensors over the same memory."""

    def __init__(self, network: nn.Module):
        held = [holder for part in network.modules() for holder in (part._parameters, part._buffers)]
        self.places = [
            (holder, name, x, _normal_weight(x)) for holder in held for name, x in holder.items()
            if x is not None and x.is_inference() and not is_traceable_wrapper_subclass(x)
        ]

    @contextmanager
    def while_open(self) -> Iterator[None]:
        """In the place of the inference tensors; whatever the host puts there meanwhile stays."""
        entered = [place for place in self.places if place[0].get(place[1]) is place[2]]
        try:
            for holder, name, _, alias in entered:
                holder[name] = alias
            yield
        finally:
            for holder, name, x, alias in entered:
                if holder.get(name) is alias:
                    holder[name] = x


def _normal_weight(x: Tensor) -> Tensor:
    with torch.inference_mode(False):
        return nn.Parameter(normal_tensor(x), requires_grad=False) if type(x) is nn.Parameter else normal_tensor(x)


def private_weights(patcher: ModelPatcher, every: bool) -> None:
    """Lets the host give layers of a cloned patcher a copy of their weights at every call, whole and not quantised.

    `every` layer, or only those with quantised weights.
    """
    for name, module in patcher.model.diffusion_model.named_modules():
        if not hasattr(module, "comfy_cast_weights"):
            continue
        for kind in ("weight", "bias"):
            key, weight = f"diffusion_model.{name}.{kind}", getattr(module, kind, None)
            if weight is None or not (every or is_traceable_wrapper_subclass(weight)):
                continue
            if _copy not in patcher.weight_wrapper_patches.get(key, []):
                patcher.add_weight_wrapper(key, _copy)


def _copy(weight: Tensor) -> Tensor:
    return weight.detach().clone()


class MemoryEstimate:
    """A PREPARE_SAMPLING wrapper: the host frees memory for `times` the batch before it loads the model."""

    def __init__(self, times: int):
        self.times = times

    def __call__(self, executor, model, noise_shape, *args, **kwargs):
        return executor(model, [noise_shape[0] * self.times, *noise_shape[1:]], *args, **kwargs)


def raise_memory_estimate(patcher: ModelPatcher, times: int) -> None:
    """Lets the host free memory for `times` the batch before it loads a cloned patcher's model.

    Of several calls for one model the largest counts: its passes with gradients come one after the other.
    """
    earlier = patcher.get_wrappers(WrappersMP.PREPARE_SAMPLING, KEY)
    times = max([times, *(estimate.times for estimate in earlier)])
    patcher.remove_wrappers_with_key(WrappersMP.PREPARE_SAMPLING, KEY)
    patcher.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, MemoryEstimate(times))


def prepare(patcher: ModelPatcher, checkpointed: bool) -> None:
    """Readies a cloned patcher, before it is loaded, for `Differentiable`. Raises ValueError for networks that have no
    backward pass."""
    if any(kind.__name__ in NO_BACKWARD for kind in type(patcher.model).__mro__):
        raise ValueError(
            f"No gradient can be taken through {type(patcher.model).__name__} in ComfyUI. Use a rewriter without "
            "gradients (fixed point + negative prompt, negative prompt, none), or another model."
        )
    raise_memory_estimate(patcher, ROOM_CHECKPOINTED if checkpointed else ROOM_PLAIN)
    private_weights(patcher, every=patcher.load_device.type != "cpu")  # a GPU's buffers for weights are used again


class Differentiable:
    """A network that can be differentiated through, for the time of one sampling.

    `checkpointed`: its blocks keep only their inputs and run again in the backward pass. What a pass changes on the
    network, its weights' tensors and its blocks' `forward`, another pack's included, is put back as it ends.
    """

    def __init__(self, network: nn.Module, checkpointed: bool):
        self.checkpointed = checkpointed
        self.blocks = [block for block in network.modules() if isinstance(block, unet.ResBlock)]
        self.blocks += _listed_blocks(network)
        self.normal = NormalWeights(network).while_open

    def __call__(self, work: Callable[[], Result]) -> Result:
        """work(), which makes the forward pass; the backward pass need not happen inside.

        Where more than the weights is made of inference tensors (a ControlNet's, another pack's patch), the pass is
        made again, and later ones at once, with every function's arguments looked at. Raises ValueError for weights of
        a kind that autograd cannot save.
        """
        try:
            return self._pass(work)
        except RuntimeError as error:
            if REFUSED not in str(error):
                raise
        self.normal = NormalTensors
        try:
            return self._pass(work)
        except RuntimeError as error:
            if REFUSED not in str(error):
                raise
            raise ValueError(
                "This model has layers of a kind through which no gradient can be taken (custom quantisation). Use a "
                "model in fp16, bf16 or fp32, or a rewriter without gradients (fixed point + negative prompt, negative "
                "prompt)."
            ) from error

    def _pass(self, work: Callable[[], Result]) -> Result:
        changed = [(block, block.__dict__.get("forward"), self._forward(block)) for block in self.blocks]
        changed = [one for one in changed if one[2] is not None]
        try:
            for block, _, forward in changed:
                block.forward = forward
            with _as_in_training(self.normal):
                return work()
        finally:
            for block, earlier, _ in changed:
                block.__dict__.pop("forward", None)
                if earlier is not None:
                    block.forward = earlier

    def _forward(self, block: nn.Module) -> Callable | None:
        """What a block is called by during a pass, if not as ever."""
        tidy = isinstance(block, TIDY) and "forward" not in block.__dict__
        forward = block.forward if tidy else with_protected_inputs(block.forward)
        if self.checkpointed:
            return _checkpointed_forward(forward, self.normal)
        return None if tidy else forward


@contextmanager
def _as_in_training(normal: Callable[[], AbstractContextManager]) -> Iterator[None]:
    """Normal tensors, no kernel of the host that lacks a backward, and no compiled code where torch can be told so."""
    with ExitStack() as stack:
        stack.enter_context(normal())
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):  # from torch 2.6 on
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        earlier, management.in_training = management.in_training, True
        try:
            yield
        finally:
            management.in_training = earlier


def _listed_blocks(network: nn.Module) -> list[nn.Module]:
    """Members of the network's module lists that are called as modules: the transformer blocks of UNets and DiTs."""
    lists = [part for part in network.modules() if isinstance(part, nn.ModuleList)]
    members = [block for part in lists for block in part if not isinstance(block, (nn.Sequential, nn.ModuleList))]
    nested = {id(inner) for block in members for inner in block.modules() if inner is not block}
    return [block for block in members if id(block) not in nested and any(True for _ in block.parameters())]


def _checkpointed_forward(forward, normal: Callable[[], AbstractContextManager]):
    def run(*args, **kwargs):
        # the host keeps changing its options dict while it walks the network; the second run must see today's
        args = [dict(a) if isinstance(a, dict) else a for a in args]
        kwargs = {k: dict(v) if isinstance(v, dict) else v for k, v in kwargs.items()}
        contexts = {"context_fn": lambda: (nullcontext(), _as_in_training(normal))}  # of the first run, of the second
        return checkpoint(forward, *args, use_reentrant=False, **contexts, **kwargs)

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
