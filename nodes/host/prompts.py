"""The prompts of both sides of guidance, checked before any work."""

from ...mirror_ops.rewriting.rewriters import Keep
from ...mirror_ops.walks.provenance import Side
from ...mirror_ops.walks.slerp import slerp
from .conditioning import Conditioning, check_batch, text_of, with_text

ABSENT = "nothing is connected"  # the default of an input in validate_inputs, where one by wire is None


def check_negative(negative: str | None, *cfgs: float | None) -> None:
    """Raises ValueError if a cfg needs a negative prompt and none is connected; for `validate_inputs`."""
    cfg = next((cfg for cfg in cfgs if cfg not in (None, 1)), 1)
    if negative == ABSENT and cfg != 1:
        raise ValueError(f"cfg {cfg:g} needs a negative prompt to guide away from. Connect `negative`, or use cfg 1.")


def prompts_at(
    cfg: float, positive: Conditioning, negative: Conditioning | None, batch: int
) -> dict[str, Conditioning]:
    """The CONDITIONING of each side that cfg reads; ValueError if one is missing or does not fit `batch` pictures."""
    if negative is None and cfg != 1:
        raise ValueError(f"cfg {cfg:g} needs a negative prompt to guide away from. Connect `negative`, or use cfg 1.")
    prompts = {"positive": positive} if cfg == 1 else {"positive": positive, "negative": negative}
    for name, conditioning in prompts.items():
        check_batch(text_of(conditioning, name), batch)
    return prompts


def prompts_for(
    rewriter: Keep, cfg: float, positive: Conditioning, negative: Conditioning | None, batch: int
) -> dict[str, Conditioning]:
    """`prompts_at` as this rewriter starts from them; ValueError, too, where cfg does not read what it rewrites."""
    if rewriter.side == Side.NEGATIVE and cfg == 1:
        raise ValueError(f"`{rewriter.name}` rewrites the negative prompt, which cfg 1 never reads. Use a higher cfg.")
    if rewriter.side == Side.NEGATIVE and rewriter.start == Side.POSITIVE:
        negative = _towards(positive, negative, rewriter.interpolation)
    return prompts_at(cfg, positive, negative, batch)


def _towards(
    positive: Conditioning, negative: Conditioning | None, interpolation: float
) -> Conditioning:
    """`positive` with its text moved along the arc to `negative`'s; ValueError where that cannot be."""
    if not interpolation:
        return positive
    if negative is None:
        raise ValueError("An interpolated negative prompt lies between `positive` and `negative`: connect `negative`.")
    start, end = text_of(positive), text_of(negative, "negative")
    if start.shape[1:] != end.shape[1:]:
        raise ValueError(
            f"`positive` has {start.shape[1]} tokens of width {start.shape[2]} and `negative` {end.shape[1]} of "
            f"{end.shape[2]}: texts of one length are needed to interpolate between them. Shorten the longer one."
        )
    return with_text(positive, slerp(start, end, interpolation))
