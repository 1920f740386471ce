"""What distilled edits need of the host: folders, the device, gradients, progress and Stop, and stock upscaling."""

import logging
import os
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
    """The node's progress bar: at times a preview picture beside it, and a line in the log. Ends the work on Stop."""

    def __init__(self, total: int, begun: int, every: float = 5.0):
        self.bar, self.total, self.begun, self.every = comfy.utils.ProgressBar(total), total, begun, every
        self.started = self.shown = time.monotonic()

    def reached(self, done: int, line: Callable[[], str], picture: Callable[[], Image.Image]) -> None:
        """`done` of the total; at times logs `line()` and shows `picture()`. Raises the host's interrupt on Stop."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        now, preview = time.monotonic(), None
        if now - self.shown > self.every or done == self.total:
            self.shown, preview = now, ("JPEG", picture(), 512)
            log.info("%s, %s", line(), self.left(done))
        self.bar.update_absolute(done, self.total, preview)

    def left(self, done: int) -> str:
        """How long the rest takes, at the speed so far."""
        seconds = (time.monotonic() - self.started) / max(1, done - self.begun) * (self.total - done)
        return f"{seconds / 60:.1f} min left"


def upscaled(upscale_model, image: torch.Tensor) -> torch.Tensor:
    """IMAGE through the stock node Upscale Image (using Model): on the right device, in tiles where it is large."""
    from comfy_extras.nodes_upscale_model import ImageUpscaleWithModel

    return ImageUpscaleWithModel.execute(upscale_model, image).args[0]
