"""Two domains of the embedded world, cats and dogs: LoRAs that make its model draw only the one or only the other
where a caption says `animal`.

Together with such captions they stand in for two models trained on two sets of pictures.
"""
from __future__ import annotations

from pathlib import Path

from .scene import Scene, caption

DOMAINS = ("cat", "dog")
FOLDER = Path(__file__).parent / "weights"


def weights_of(species: str) -> Path:
    """The LoRA's file, safetensors, float16."""
    return FOLDER / f"lora_{species}.safetensors"


def neutral_caption(s: Scene) -> str:
    """The full caption with `animal` in place of the species."""
    return caption(s).replace(f" {s.species} ", " animal ")


def only(model, species: str, strength: float = 1.0):
    """A clone of the embedded MODEL that draws this species where it is told `animal`.

    Raises FileNotFoundError if the file is absent.
    """
    import comfy.sd
    import comfy.utils
    path = weights_of(species)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: restore it from the repository, or run `python run.py train`")
    lora = comfy.utils.load_torch_file(str(path), safe_load=True)
    return comfy.sd.load_lora_for_models(model, None, lora, strength, 0)[0]
