"""Language and caption models of the transformers library, from folders on disk; the library is imported when used."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management as management
import folder_paths
import torch


def model_folder(name: str) -> Path:
    """The folder of a transformers model: an absolute path, or one below ComfyUI's models folder.

    Raises ValueError, saying what to do, if there is no such model. Nothing is ever downloaded.
    """
    if not name.strip():
        raise ValueError("`model` is empty. Give the folder of a downloaded transformers model (it holds config.json).")
    folder = Path(folder_paths.models_dir, Path(name.strip()).expanduser())
    if not _is_file(folder / "config.json"):
        raise ValueError(
            f"There is no transformers model in {folder}: a folder with config.json is needed. Download one, for "
            "example with `huggingface-cli download NAME --local-dir FOLDER`, and give its path."
        )
    return folder


def _is_file(path: Path) -> bool:
    """Also for names that no file can have: too long, or with a NUL."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def library():
    """The transformers module. Raises ValueError if it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise ValueError("This node needs the transformers package: pip install transformers.") from error
    return transformers


@contextmanager
def loaded(kind, folder: Path) -> Iterator[torch.nn.Module]:
    """A model of the transformers class `kind` on the host's device, for as long as this is open.

    Files are read from `folder` alone and code in them is not run. Raises ValueError if they do not fit `kind`.
    """
    device = management.get_torch_device()
    half = management.should_use_fp16(device)
    try:
        precision = {_dtype_argument(): torch.float16 if half else torch.float32}
        model = kind.from_pretrained(folder, local_files_only=True, **precision)
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"The model in {folder} cannot be used here: {error}") from error
    management.free_memory(2 * sum(w.nbytes for w in model.parameters()), device)
    try:
        yield model.eval().to(device)
    finally:
        del model
        management.soft_empty_cache()


def _dtype_argument() -> str:
    """What `from_pretrained` calls the precision: transformers before 4.56 refuse `dtype`, later ones prefer it."""
    major, minor = map(int, library().__version__.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"


def stopping(transformers):
    """Stopping criteria that end a generation when the user presses the button."""

    def ask(ids, scores, **kwargs):
        management.throw_exception_if_processing_interrupted()
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    return transformers.StoppingCriteriaList([ask])
