"""One tensor from a .pt file of torch.save, read as weights only, and measured before it is unpacked."""

import math
import zipfile
from pathlib import Path

import torch
from torch import Tensor


def read_pt(path: str | Path) -> Tensor:
    """The one floating-point tensor that the file holds, float32 and finite.

    Raises ValueError, naming the file, for anything else: text, other formats, archives that unpack to more than they
    are, several tensors, sparse, quantised and meta tensors, views that claim more numbers than the file has.
    """
    name, size = Path(path).name, Path(path).stat().st_size
    _check_archive(path, name, size)
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile pickle can make the reader raise anything
        raise ValueError(f"{name} is damaged, or holds more than tensors: it is not read.") from error
    if type(value) not in (Tensor, torch.nn.Parameter) or not value.is_floating_point():
        raise ValueError(f"{name} does not hold one tensor of floating-point numbers.")
    if value.layout is not torch.strided or value.is_meta or value.is_quantized:
        raise ValueError(f"{name} holds a sparse, quantised or empty shell of a tensor. Save it as a plain one.")
    if math.prod(value.shape) * value.element_size() > size:
        raise ValueError(f"{name} claims {list(value.shape)} numbers, more than the file holds: it is not read.")
    value = value.detach().float()
    if value.numel() == 0 or not torch.isfinite(value).all():
        raise ValueError(f"{name} holds numbers that are not finite, or none at all.")
    return value


def _check_archive(path: str | Path, name: str, size: int) -> None:
    """Raises ValueError unless this is a zip archive as torch.save writes it: nothing in it is compressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{name} is damaged, or no file of torch.save (since PyTorch 1.6).") from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(e.file_size for e in entries) > size:
        raise ValueError(f"{name} unpacks to more than it is, which no file of torch.save does: it is not read.")
