"""What a clear refusal is."""

import gc
import re

from harness.environment import ROOT
from harness.results import GraphFailed

OF_TORCH = re.compile(
    r"Tensor\b|sizes? of tensor|mismatch|NoneType|object has no|dtype|index \d+ |broadcast|KeyError|mat1|xpected scalar"
)
AFTER_WORK = ("left the finite numbers", "is not finite", "not finite in iteration")  # only a walk can show that

FIRST_PASS = ("Raise `largest`", "Give both the same text")  # what layers a network has, and what a sampler was told


def defect(failure: GraphFailed, passes: int) -> str:
    """What is wrong with a refusal; empty if nothing is."""
    if not failure.node_type.startswith(("Mirror", "Cycle", "Redescribed", "Prompt", "CLIPDomain")):
        return ""  # the stand-in that makes the bad value could not
    if ": ValueError: " not in str(failure):
        return "not a sentence of the pack's"
    if str(ROOT) not in failure.trace.rsplit("File ", 1)[-1]:
        return "raised outside the pack"
    if "\n" in failure.text or len(failure.text) > 500 or not failure.text.endswith((".", "?")):
        return "not one sentence"
    if OF_TORCH.search(failure.text):
        return "not plain words"
    if passes <= 2 and any(words in failure.text for words in FIRST_PASS):
        return ""
    if passes and not any(words in failure.text for words in AFTER_WORK):
        return f"only after {passes} passes"
    return ""


def told(failure: GraphFailed) -> str:
    """The first line of what was said, and where it was raised."""
    where = failure.trace.rsplit("File ", 1)[-1].split("\n")[0]
    return f"{str(failure).splitlines()[0][:400]} | {where}"


def orphans() -> list[str]:
    """Models that the host has loaded and can never unload: what they were loaded for has died, its parents too."""
    from comfy.model_management import current_loaded_models
    gc.collect()
    return [type(loaded.real_model()).__name__ for loaded in current_loaded_models if loaded.is_dead()]
