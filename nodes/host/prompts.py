"""The prompts of both sides of guidance, checked before any work."""

from .conditioning import Conditioning, check_batch, text_of


def prompts_at(
    cfg: float, positive: Conditioning, negative: Conditioning | None, batch: int
) -> dict[str, Conditioning]:
    """The CONDITIONING of each side; ValueError if one is missing or does not fit."""
    if negative is None and cfg != 1:
        raise ValueError(f"cfg {cfg:g} needs a negative prompt to guide away from. Connect `negative`, or use cfg 1.")
    prompts = {"positive": positive} if cfg == 1 else {"positive": positive, "negative": negative}
    for name, conditioning in prompts.items():
        check_batch(text_of(conditioning, name), batch)
    return prompts
