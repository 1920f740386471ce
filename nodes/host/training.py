"""What distilled edits need of the host: folders, the device, gradients, progress and Stop, and stock upscaling."""

import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch
from PIL import Image

from ...mirror_ops.distillation import network, tiles
from ...mirror_ops.distillation.pairs import FIGURES
from . import notices

MODELS = "upscale_models"  # where stock Load Upscale Model looks
ROOM = 4 << 30  # bytes that a training asks the host to make free on its device
SHIPPED = Path(__file__).parents[2] / "demo" / "edits"

log = logging.getLogger("mirror")


def show_shipped_edits() -> None:
    """Lets stock Load Upscale Model list the edits that `run.py distil` has put beside the demo model, if there are."""
    if SHIPPED.is_dir():
        folder_paths.add_model_folder_path(MODELS, str(SHIPPED))


def pairs_folder(name: str) -> Path:
    """The folder of a set of pairs in ComfyUI's output folder. Raises ValueError for a name that leads out of it."""
    return _inside(Path(folder_paths.get_output_directory(), "mirror", "pairs"), name)


def pairs_state(name: str) -> list | None:
    """Changes with the pairs of that name; None where there can be none."""
    try:
        kept = (pairs_folder(name) / FIGURES).glob("*.json")
        return [(path.name, path.stat().st_mtime_ns) for path in sorted(kept)]
    except (OSError, ValueError):
        return None


def training_file(name: str) -> Path:
    """Where a training that is not finished is kept."""
    return _inside(Path(folder_paths.get_output_directory(), "mirror", "training"), f"{name}.pt")


def model_file(name: str) -> Path:
    """Where the finished edit goes: the first folder of upscaling models that is not the pack's own."""
    folders = [Path(folder) for folder in folder_paths.get_folder_paths(MODELS) if Path(folder) != SHIPPED]
    return _inside(folders[0], f"{name}.safetensors")


def listed_name(path: Path) -> str:
    """The name under which Load Upscale Model lists a file."""
    roots = [Path(folder) for folder in folder_paths.get_folder_paths(MODELS)]
    return next(os.path.relpath(path, root) for root in roots if path.is_relative_to(root))


def check_ours(file: Path) -> None:
    """Raises ValueError if a file is there that Mirror Train Edit has not made: it must not be written over."""
    if file.exists():
        try:
            network.about(file)
        except ValueError as error:
            raise ValueError(
                f"`{listed_name(file)}` is in Load Upscale Model already and was not made by Mirror Train Edit. Give "
                "another `name`; nothing was written over."
            ) from error


def check_room(path: Path, size: int) -> None:
    """Raises ValueError if a file of so many bytes does not fit beside an earlier one, or may not be written."""
    there = next(folder for folder in path.parents if folder.exists())
    if not os.access(there, os.W_OK):
        raise ValueError(f"Nothing can be written in {there}. Make it writable, or start ComfyUI with another folder.")
    free = shutil.disk_usage(there).free
    if free < size:
        raise ValueError(
            f"{there} has {free / 1e6:.0f} MB left and this needs {size / 1e6:.0f} MB. Free some space, then queue "
            "again."
        )


def told(text: str) -> None:
    """In the log, and on the node that is running."""
    log.info("%s", text)
    notices.show(text)


def _inside(root: Path, name: str) -> Path:
    root = root.absolute()
    path = Path(os.path.normpath(root / name.strip()))
    wrong = "\0" in name or not name.strip() or path == root or not path.is_relative_to(root)
    if wrong or max(map(len, map(os.fsencode, path.parts))) > 200:  # most file systems end at 255 bytes
        raise ValueError(f"{name[:100]!r} is no name for a file or folder. Give a short one like `fox to dog`.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"No folder can be made for {name[:100]!r} ({error.strerror}). Give another.") from error
    return path


def device() -> torch.device:
    """Where the host runs its models."""
    return comfy.model_management.get_torch_device()


@contextmanager
def gradients():
    """Outside of the executor's inference mode, whose tensors autograd refuses; on a GPU other models make room."""
    comfy.model_management.free_memory(ROOM, device())
    with torch.inference_mode(False), torch.enable_grad():
        yield


def as_upscale_model(path: Path):
    """UPSCALE_MODEL of a file, as stock Load Upscale Model makes it."""
    from spandrel import ModelLoader

    made = ModelLoader().load_from_state_dict(comfy.utils.load_torch_file(str(path), safe_load=True)).eval()
    load, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    made.patcher = comfy.model_patcher.CoreModelPatcher(made.model, load_device=load, offload_device=offload)
    return made


class Bar:
    """The node's progress bar: at times a preview picture beside it, and a line on the node and in the log. Ends the
    work on Stop."""

    def __init__(self, total: int, begun: int, every: float = 5.0):
        self.bar, self.total, self.begun, self.every = comfy.utils.ProgressBar(total), total, begun, every
        self.started = self.shown = time.monotonic()

    def reached(self, done: int, line: Callable[[], str], picture: Callable[[], Image.Image]) -> None:
        """`done` of the total; at times tells `line()` and shows `picture()`. Raises the host's interrupt on Stop."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        preview = None
        if time.monotonic() - self.shown > self.every or done == self.total:
            preview = ("JPEG", picture(), 512)
            told(f"{line()}, {self.left(done)}")
            self.shown = time.monotonic()  # afterwards: a picture may take longer than the wait for the next
        self.bar.update_absolute(done, self.total, preview)

    def left(self, done: int) -> str:
        """How long the rest takes, at the speed so far."""
        seconds = (time.monotonic() - self.started) / max(1, done - self.begun) * (self.total - done)
        return f"{seconds / 60:.1f} min left"


def edited(upscale_model, image: torch.Tensor) -> torch.Tensor:
    """IMAGE [B, H, W, 3] through a distilled edit. Large ones go in tiles that overlap by all that the network sees, so
    that the result is that of the whole picture; other upscaling models, as the stock node does it."""
    large = max(image.shape[1:3]) > tiles.SIDE
    if not large or not network.is_edit(upscale_model.model) or not tiles.room(network.shape_of(upscale_model.model)):
        return upscaled(upscale_model, image)

    def run(picture: torch.Tensor) -> torch.Tensor:
        return upscaled(upscale_model, picture.movedim(1, -1)).movedim(-1, 1)

    return tiles.in_tiles(run, image.movedim(-1, 1), network.shape_of(upscale_model.model)).movedim(1, -1)


def upscaled(upscale_model, image: torch.Tensor) -> torch.Tensor:
    """IMAGE through the stock node Upscale Image (using Model): on the right device. Above 512 pixels it takes tiles
    that overlap by 32 and blends them."""
    from comfy_extras.nodes_upscale_model import ImageUpscaleWithModel

    return ImageUpscaleWithModel.execute(upscale_model, image).args[0]
