"""Keeping in-place writes away from what autograd has saved.

The host's networks, and patches of other packs, write in place: ControlNet residuals are added so, Flux's blocks add to
their input, FreeU rescales what a block returned. In inference nobody sees it; with gradients it destroys what the
backward pass needs. Here the writer gets a tensor of its own.
"""

import comfy.ldm.modules.attention
from comfy.patcher_extension import WrappersMP
from torch import Tensor
from torch._C import DisableTorchFunctionSubclass

KEY = "mirror_gradients"
# The host's patches between blocks, which are given what the blocks returned.
BETWEEN_BLOCKS = (
    "input_block_patch", "input_block_patch_after_skip", "middle_block_after_patch", "output_block_patch",
)


def differentiable(model_options: dict) -> dict:
    """Model options for a pass with gradients: attention by torch's own kernels, since some of the host's have no
    backward, and no in-place writes between the blocks."""
    options = model_options.get("transformer_options", {})
    earlier = options.get("optimized_attention_override")
    pytorch = comfy.ldm.modules.attention.attention_pytorch

    def override(func, *args, **kwargs):
        return pytorch(*args, **kwargs) if earlier is None else earlier(pytorch, *args, **kwargs)

    patches = options.get("patches", {})
    copied = {name: [_on_copies(patch) for patch in patches[name]] for name in BETWEEN_BLOCKS if name in patches}
    wrappers = options.get("wrappers", {})
    applied = {**wrappers.get(WrappersMP.APPLY_MODEL, {}), KEY: [_add_control_out_of_place]}
    options = {
        **options,
        "optimized_attention_override": override,
        "patches": {**patches, **copied},
        "wrappers": {**wrappers, WrappersMP.APPLY_MODEL: applied},
    }
    return {**model_options, "transformer_options": options}


def _on_copies(patch):
    """The patch, given copies of the tensors."""

    def run(*args):
        out = patch(*(a.clone().as_subclass(PatchInput) if isinstance(a, Tensor) else a for a in args))
        return tuple(map(_plain, out)) if isinstance(out, tuple) else _plain(out)

    return run


def _plain(x):
    return x.as_subclass(Tensor) if isinstance(x, (PatchInput, BlockInput)) else x


class PatchInput(Tensor):
    """What a patch may write to. Slices are copies, so that `h[:, :n] = h[:, :n] * s` spares what `*` has saved."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with DisableTorchFunctionSubclass():
            out = func(*args, **(kwargs or {}))
            return out.clone() if func is Tensor.__getitem__ else out


class Addend(Tensor):
    """A ControlNet's residual: `h += residual` makes a new h, and leaves alone the one that autograd has saved."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with DisableTorchFunctionSubclass():
            plain = [a.as_subclass(Tensor) if isinstance(a, cls) else a for a in args]
            return (Tensor.add if func is Tensor.add_ else func)(*plain, **(kwargs or {}))


def _add_control_out_of_place(executor, x, t, c_concat=None, c_crossattn=None, control=None, *args, **kwargs):
    """An APPLY_MODEL wrapper: the host's networks add ControlNet residuals in place; these are added otherwise."""
    if control is not None:
        control = {
            name: [r if r is None else r.as_subclass(Addend) for r in residuals] for name, residuals in control.items()
        }
    return executor(x, t, c_concat, c_crossattn, control, *args, **kwargs)


class BlockInput(Tensor):
    """A block's input: `x += y` makes a new x. Flux's blocks add in place to what autograd, or a checkpoint, keeps."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with DisableTorchFunctionSubclass():
            if func in OUT_OF_PLACE:
                return OUT_OF_PLACE[func](*args, **(kwargs or {})).as_subclass(cls)
            return func(*args, **(kwargs or {}))


OUT_OF_PLACE = {Tensor.add_: Tensor.add, Tensor.sub_: Tensor.sub, Tensor.mul_: Tensor.mul, Tensor.div_: Tensor.div}


def with_protected_inputs(forward):
    """A block's `forward` whose tensors it cannot change in place by arithmetic."""

    def entering(x):
        return x.as_subclass(BlockInput) if isinstance(x, Tensor) and x.is_floating_point() else x

    def run(*args, **kwargs):
        out = forward(*map(entering, args), **{k: entering(v) for k, v in kwargs.items()})
        return tuple(map(_plain, out)) if isinstance(out, tuple) else _plain(out)

    return run
