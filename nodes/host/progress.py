"""One progress bar over all inner steps, with a live preview of the picture at each outer step."""

import comfy.model_management
import comfy.utils
import latent_preview
from comfy.model_patcher import ModelPatcher
from torch import Tensor


def progress_bar(total: int) -> comfy.utils.ProgressBar:
    """The running node's bar; `update(1)` at each of `total` parts."""
    return comfy.utils.ProgressBar(total)


def stop_if_interrupted() -> None:
    """Stops here if the user pressed the button."""
    comfy.model_management.throw_exception_if_processing_interrupted()


class Progress:
    """Counts evaluations of the network up to `total`, an upper bound known before the work starts."""

    def __init__(self, model: ModelPatcher, total: int):
        self.total, self.done = total, 0
        self.bar = comfy.utils.ProgressBar(total)
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def evaluated(self) -> None:
        """One more evaluation. Stops here if the user pressed the button."""
        stop_if_interrupted()
        self.done = min(self.done + 1, self.total)
        self.bar.update_absolute(self.done, self.total)

    def reached(self, done: int, denoised: Tensor | None) -> None:
        """An outer step is over: `done` of the total, however few evaluations it took; shows `denoised`."""
        self.done = done
        preview = None
        if self.previewer is not None and denoised is not None:
            preview = self.previewer.decode_latent_to_preview_image("JPEG", denoised[:1])
        self.bar.update_absolute(done, self.total, preview)
