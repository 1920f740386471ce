"""What enters a node and what leaves a walk: numbers that are finite and in range, and pictures that are there.

`check_inputs` runs before every node of the pack (see `nodes.found`): the host checks the range of a widget, but not of
a number that comes by wire, and nothing of what tensors hold. `check_result` stands at the end of `denoiser.run`.
"""

import dataclasses
import math
from collections.abc import Iterator

import torch
from comfy_api.latest import io
from torch import Tensor

from .notices import warn

SEEDS = {"min": 0, "max": 2**64 - 1}  # as wide as those of the stock nodes
LONGEST = 480  # characters of a message
CELLS = (8, 16, 32, 64)  # pixels a side that autoencoders make one cell of


def check_inputs(inputs: list, given: dict) -> None:
    """Raises ValueError, naming the input, for a value that no node can work with.

    inputs: those of a schema; given: name -> value as the host passes it. Numbers are held to the widget's range,
    choices to its list; pictures, latents, texts and levels have to be finite and not empty.
    """
    for put in inputs:
        value = given.get(put.id)
        if value is None and put.optional:
            continue
        if isinstance(put, io.DynamicCombo.Input):  # the host leaves out a choice that it does not know
            chosen = (value or {}).get(put.id)
            _check_choice(put, chosen, [option.key for option in put.options])
            check_inputs(next(option for option in put.options if option.key == chosen).inputs, value)
        elif value is None or (isinstance(put, io.Autogrow.Input) and None in value.values()):
            raise ValueError(
                f"`{put.id}` is empty: the node that it comes from has nothing to give, such as a checkpoint without a "
                "VAE or CLIP. Connect one that has."
            )
        elif isinstance(put, io.Int.Input | io.Float.Input):
            _check_number(put, value)
        elif isinstance(put, io.Combo.Input):
            _check_choice(put, value, put.options)
        else:
            check_finite(value, f"`{put.id}`")
            if isinstance(put, io.Latent.Input):
                _check_latent(put, value)
            if isinstance(put, io.Conditioning.Input):
                _check_texts(put, value)


def _check_number(put, value: float) -> None:
    low, high = (-math.inf if put.min is None else put.min), (math.inf if put.max is None else put.max)
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"`{put.id}` takes a number from {low:g} to {high:g}, not {value:g}.")
    if isinstance(put, io.Int.Input) and value != int(value):
        raise ValueError(f"`{put.id}` takes a whole number, not {value:g}.")


def _check_choice(put, value: str | None, options: list) -> None:
    if options and value not in options:
        said = "what it is set to" if value is None else repr(value)
        raise ValueError(f"`{put.id}` cannot be {said}. It is one of: {', '.join(map(str, options))}.")


def _check_latent(put, value: dict) -> None:
    if not isinstance(value.get("samples"), Tensor):
        raise ValueError(f"`{put.id}` has no picture in it. Connect a VAE Encode or an empty latent of still pictures.")
    if isinstance(value.get("noise_mask"), Tensor):
        check_mask(value["noise_mask"], value["samples"], f"the noise mask of `{put.id}`")


def _check_texts(put, value: list) -> None:
    texts = [entry[0] for entry in value]
    if not texts or any(not isinstance(text, Tensor) or text.ndim != 3 for text in texts):
        raise ValueError(f"`{put.id}` has no text embedding to work with. Connect a CLIPTextEncode.")


def check_finite(value: object, name: str) -> None:
    """Raises ValueError if a tensor in `value` is empty or holds NaN or infinity."""
    for x in tensors_in(value):
        if x.numel() == 0:
            raise ValueError(f"{name} is empty (its shape is {list(x.shape)}). Give at least one picture or text.")
        if not _is_finite(x):
            raise ValueError(
                f"{name} holds numbers that are not finite (NaN or infinite). The node that made it went wrong: often "
                "a VAE or model in half precision, or a broken file."
            )


def check_result(result: object) -> None:
    """Raises ValueError if what a walk gives is not finite."""
    if not all(_is_finite(x) for x in tensors_in(result)):
        raise ValueError(
            "The walk left the finite numbers. Lower cfg or strength, take more steps, or run the model in a higher "
            "precision (--force-fp32)."
        )


def _is_finite(x: Tensor) -> bool:
    return not x.is_floating_point() or bool(torch.isfinite(x).all())


def tensors_in(value: object) -> Iterator[Tensor]:
    """The tensors of an image, mask, latent, conditioning, sigmas, or of one of the pack's own values.

    Masks of attention, among the options of a text, are left out: they may be infinite.
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for key in value.keys() - {"attention_mask"}:
            yield from tensors_in(value[key])
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from tensors_in(vars(value))


def places_of(latent: dict) -> list[int]:
    """Which picture of its batch each is: a picture taken out of a batch is edited as it was in there."""
    return list(latent.get("batch_index") or range(len(latent["samples"])))


def mask_at(mask: Tensor | None, pictures: Tensor, name: str) -> Tensor | None:
    """[B or 1, 1, H, W] in [0, 1], float32 on the CPU: a mask [B or 1, h, w] at the size of latents [B, C, H, W].

    One of a picture whose sides are no multiple of the autoencoder's cell loses what that crops. Raises ValueError as
    `check_mask`.
    """
    if mask is None:
        return None
    check_mask(mask, pictures, name)
    mask = _whole_cells(mask.float().reshape(-1, 1, *mask.shape[-2:]), pictures.shape[-2:])
    return torch.nn.functional.interpolate(mask, size=pictures.shape[-2:], mode="bilinear").clamp(0, 1).cpu()


def _whole_cells(mask: Tensor, cells: torch.Size) -> Tensor:
    """The middle of a mask [..., h, w] of a picture that was encoded to so many (rows, columns) of cells, without what
    was cropped."""
    for cell in CELLS:
        if [side // cell for side in mask.shape[-2:]] == list(cells):
            top, left = ((side - cell * n) // 2 for side, n in zip(mask.shape[-2:], cells, strict=True))
            return mask[..., top : top + cell * cells[0], left : left + cell * cells[1]]
    return mask


def check_mask(mask: Tensor, pictures: Tensor, name: str) -> None:
    """Raises ValueError unless there is one mask, or one for each picture; says so if nothing is painted."""
    found = mask.shape[:-2].numel()
    if found not in (1, len(pictures)):
        raise ValueError(f"There are {found} masks in {name} for {len(pictures)} picture(s): give one, or one each.")
    if not mask.any():
        warn(f"{name} is empty, as that of a Load Image without a painted mask: the edit may act nowhere.")


def one_line(text: str) -> str:
    """A message without the line ends, and the middle, of a long text that it quotes."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 + 5 :]}"


def guarded(kind: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The same node, whose inputs are checked before it runs, and whose errors fit on one line of the editor.

    What is wired but brings nothing is left out, so that an optional input has its default; so is what an option of a
    choice had that is no longer chosen, which the host passes on.
    """
    inner = kind.execute.__func__
    if getattr(inner, "checks_inputs", False):
        return kind

    def execute(cls, *args, **given) -> io.NodeOutput:
        inputs = kind.define_schema().inputs
        given = dict(zip((put.id for put in inputs), args, strict=False)) | given
        try:
            check_inputs(inputs, given)
            known = {put.id for put in inputs}
            return inner(cls, **{name: value for name, value in given.items() if value is not None and name in known})
        except ValueError as error:
            if type(error) is not ValueError or (said := one_line(str(error))) == str(error):
                raise
            raise ValueError(said) from error

    execute.checks_inputs = True
    kind.execute = classmethod(execute)
    return kind

