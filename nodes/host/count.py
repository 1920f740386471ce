"""How many rows go through the network during a walk."""

from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

KEY = "mirror_count"


@dataclass
class Count:
    """Rows that went through the network, forward and backward; backward from wherever the gradient starts."""

    forwards: int = 0
    backwards: int = 0

    def attach(self, patcher: ModelPatcher) -> None:
        """Counts every application of a cloned patcher's model."""

        def apply(executor, x, *args, **kwargs):
            rows = len(x)
            self.forwards += rows
            if torch.is_grad_enabled():
                x, args, kwargs = self._watched(x, args, kwargs)
            try:
                return executor(x, *args, **kwargs)
            except RuntimeError:  # which is made again, or ends the walk
                self.forwards -= rows
                raise

        patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply)

    def __add__(self, other: "Count") -> "Count":
        return Count(self.forwards + other.forwards, self.backwards + other.backwards)

    def each(self, pictures: int) -> tuple[float, float]:
        """(forwards, backwards) for each of so many pictures."""
        return self.forwards / pictures, self.backwards / pictures

    def _watched(self, x: Tensor, args: tuple, kwargs: dict) -> tuple[Tensor, tuple, dict]:
        """The inputs, of which the first that takes a gradient tells when it arrives.

        A gradient that starts at attention maps never passes the output, but whatever goes back arrives at an input.
        """
        rows, inputs = len(x), [x, *args, *kwargs.values()]
        for k, value in enumerate(inputs):
            if isinstance(value, Tensor) and value.requires_grad:
                inputs[k] = value.view_as(value)
                inputs[k].register_hook(lambda _: self._add_backward(rows))
                break
        return inputs[0], tuple(inputs[1 : 1 + len(args)]), dict(zip(kwargs, inputs[1 + len(args) :], strict=True))

    def _add_backward(self, rows: int) -> None:
        self.backwards += rows
