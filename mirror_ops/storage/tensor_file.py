"""Named tensors and plain facts in one safetensors file: written whole or not at all, and checked when read."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .whole_file import whole_file


@dataclass(frozen=True)
class FileKind:
    """What a file holds: `tensors` maps each name to its number of dimensions and the dtypes that it may have."""

    name: str
    version: int
    noun: str  # in messages: "mirror"
    tensors: dict[str, tuple[int, tuple[torch.dtype, ...]]]
    optional: frozenset[str] = frozenset()

    def write(self, path: str | Path, tensors: dict[str, Tensor | None], facts: str) -> None:
        """Writes tensors (None: left out) and `facts`, JSON text, by way of another name, so that an interruption or a
        full disk never leaves half a file. Raises ValueError, saying why, where nothing can be written."""
        # copies, because the format refuses tensors that share memory: a mirror from a seed is its own way back
        kept = {
            name: value.clone(memory_format=torch.contiguous_format)
            for name, value in tensors.items() if value is not None
        }
        header = {"format": self.name, "version": str(self.version), "meta": facts}
        try:
            with whole_file(Path(path)) as part:
                save_file(kept, str(part), header)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"The {self.noun} could not be written to {path} ({error}). Free some space there, or make it writable."
            ) from error

    def read(self, path: str | Path) -> tuple[dict, dict[str, Tensor]]:
        """(facts, tensors) of a file of `write`. Raises ValueError, naming the file, for anything else: another kind, a
        later version, missing or other tensors, numbers that are not finite, facts that are no JSON object."""
        file_name = Path(path).name
        try:
            with safe_open(str(path), framework="pt") as file:
                header = file.metadata() or {}
                self._check_version(header, file_name)
                # copies, because the reader's tensors are views of the file: written over, they would change, and
                # Windows replaces no file that is in use
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
            facts = json.loads(header["meta"])
        except (SafetensorError, OSError, KeyError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(
                f"{file_name} is damaged or no safetensors file ({_reason(error)}). Copy it anew, or make it again."
            ) from error
        self._check_tensors(tensors, file_name)
        if not isinstance(facts, dict):
            raise ValueError(f"{file_name} is damaged: it does not say how the {self.noun} was made.")
        return facts, tensors

    def _check_version(self, header: dict, file_name: str) -> None:
        if header.get("format") != self.name:
            raise ValueError(f"{file_name} is not a saved {self.noun}.")
        version = header.get("version", "")
        if not version.isdecimal():
            raise ValueError(f"{file_name} is damaged: its version is {version!r}.")
        if int(version) > self.version:
            raise ValueError(
                f"{file_name} is a {self.noun} of version {version}; this pack reads up to {self.version}. Update the "
                "pack."
            )
        if int(version) < self.version:
            raise ValueError(
                f"{file_name} is a {self.noun} of version {version}, which this pack no longer reads. Make it again."
            )

    def _check_tensors(self, tensors: dict[str, Tensor], file_name: str) -> None:
        wanted = set(self.tensors)
        if missing := sorted(wanted - self.optional - set(tensors)):
            raise ValueError(f"{file_name} is damaged: {', '.join(missing)} of the {self.noun} is missing.")
        if unknown := sorted(set(tensors) - wanted):
            raise ValueError(f"{file_name} holds {', '.join(unknown[:5])}, which no {self.noun} has.")
        for name, value in tensors.items():
            dimensions, dtypes = self.tensors[name]
            if value.ndim != dimensions or value.dtype not in dtypes:
                raise ValueError(
                    f"{file_name} is damaged or was changed by another program: its {name} are "
                    f"{str(value.dtype).removeprefix('torch.')} of {value.ndim} dimensions, not "
                    f"{str(dtypes[0]).removeprefix('torch.')} of {dimensions}."
                )
            if value.numel() == 0 or not torch.isfinite(value).all():
                raise ValueError(f"{file_name} is damaged: its {name} are empty or hold numbers that are not finite.")


def _reason(error: Exception) -> str:
    """The error in a few words; not in those of the reader of headers, who speaks of bytes and fields."""
    return f"{error}"[:200] if isinstance(error, OSError) else "its header can't be read"
