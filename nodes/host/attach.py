"""The source side beside an edit: how a control on a model gets it, and how a walk gives it.

Attention control (prompt-to-prompt, MasaCtrl), cross-attention guidance (pix2pix-zero) and guidance towards the source
(ProxEdit) need what the network does for the picture as it was, at the very step of the edit. A control says so with
`attach` and then finds, wherever it acts, the `ReferencePass` of this step; it does not care where that comes from:

- a mirror: at each evaluation the mirror's step is found by its sigma and the network is evaluated on
  mirror.latents[i] with the mirror's own prompt of that step (as in Direct Inversion, Ju et al., ICLR 2024, the source
  branch is the recording). Works in any sampler that takes the mirror's steps.
- shared noise: the walk evaluates both sides itself, and its own source side is read, at no cost. Such a walk calls
  `run(..., reference=SHARED_NOISE)` and marks its evaluations: `walk.denoise(..., branch=Branch.SOURCE)` and then, at
  the same step, `branch=Branch.EDIT`. That is all it has to do.

What attention replacements `keep` while the source is evaluated is there to `read` while the edit is:

    attach(patcher, mirror, sides=(POSITIVE,))           # mirror None: from the walk that runs

    def attend(q, k, v, extra_options, onward):          # see attention.replace_attention
        reference = active_reference(extra_options)
        if reference is None:
            return onward(q, k, v, extra_options)
        if reference.recording:
            reference.keep("mine", extra_options, lambda rows: (q[rows], k[rows]))
            return onward(q, k, v, extra_options)
        for side, rows in reference.rows(extra_options, len(q)):
            q_source, k_source = reference.read("mine", extra_options, side)
            ...

    replace_attention(patcher, "attn1", attend)

Several controls attach to one model: the source is evaluated once for all of them. Whoever needs the source before the
evaluation (a PREDICT_NOISE wrapper, which has its transformer options in model_options) calls `ReferencePass.record`
first.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import comfy.sampler_helpers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...mirror_ops.walks.trajectory import Mirror
from .branches import CONTROLLED, Branch, Control, acts, branch_of
from .compatibility import check_no_step_cache
from .conditioning import Conditioning, scheduled, text_of, with_pooled
from .identity import check_made_with
from .reference_pass import NEAR, POSITIVE, PROMPT, Check, Recorded, ReferencePass, Shared, check_shape, step_of

NO_SOURCE = (
    "A control on this model has no mirror. Connect `mirror` to the control node, or sample with Mirror Sample or "
    "under shared noise, which have a source of their own."
)
_DECLARED, _SUPPLIED, _REFERENCE = "mirror_source", "mirror_supplied", "mirror_reference"


class SharedNoise:
    """Says that the walk which runs evaluates the source side itself, at every step before the edit's."""


SHARED_NOISE = SharedNoise()


@dataclass(frozen=True)
class Declared:
    """What a patched model carries: the mirror if one is connected, its CONDITIONING, the sides (prompts) to be
    evaluated, and what has to hold before work."""

    mirror: Mirror | None
    conditioning: Conditioning | None
    sides: frozenset[int]
    checks: tuple[Check, ...]


def attach(
    patcher: ModelPatcher, mirror: Mirror | None = None, conditioning: Conditioning | None = None,
    sides: Iterable[int] = (POSITIVE,), check: Check | None = None,
) -> None:
    """Has the source evaluated beside whatever is sampled with this cloned patcher.

    mirror: whose recording is the source; None leaves it to the walk (MirrorSample's own mirror, or shared noise).
    conditioning: the CONDITIONING that the mirror was made with, if it holds more than text (ControlNet, sizes); its
    text is replaced by the mirror's. sides: POSITIVE, the source's prompt, and NEGATIVE, the sampler's own negative
    prompt, which costs a row more and is left out where the sampler leaves it out (cfg 1) or says the same as the
    source's. No sides: the source's latents alone are read. `check` is called as soon as there is something to check.
    Raises ValueError for a mirror of another model, a conditioning of another length, and for two mirrors on one model.
    """
    options, given = patcher.model_options.setdefault("transformer_options", {}), conditioning
    if mirror is not None:
        check_made_with(mirror, patcher)
        conditioning = _prompt(mirror, conditioning)
        if check is not None:
            check(mirror.steps, mirror.source, None)
    checks = () if check is None else (check,)
    earlier: Declared | None = options.get(_DECLARED)
    if earlier is None:
        patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, _DECLARED, _around_sampling)
        patcher.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, _DECLARED, _around_prediction)
        patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, _DECLARED, _around_evaluation)
        options[_DECLARED] = Declared(mirror, conditioning, frozenset(sides), checks)
        return
    if earlier.mirror is not None and mirror is not None and not earlier.mirror.same_as(mirror):
        raise ValueError("This model already has attention control by another mirror. Connect the same mirror to both.")
    options[_DECLARED] = replace(
        earlier, mirror=earlier.mirror or mirror,
        conditioning=conditioning if given is not None else earlier.conditioning or conditioning,
        sides=earlier.sides | frozenset(sides), checks=earlier.checks + checks,
    )


def supply(patcher: ModelPatcher, reference: Mirror | SharedNoise | None) -> None:
    """Says where the source of a walk with this cloned patcher comes from, for controls that have no mirror; shared
    noise serves those that have one, too."""
    patcher.model_options.setdefault("transformer_options", {})[_SUPPLIED] = reference


def check_edited_text(patcher: ModelPatcher, steps: int, prompt: Conditioning) -> None:
    """Raises ValueError, before a walk of ours, if a control on the model was told another text than the edited prompt.

    Of the walk itself it could not be told: there the prompt is moved by its strength.
    """
    declared: Declared | None = patcher.model_options.get("transformer_options", {}).get(_DECLARED)
    for check in () if declared is None or len(prompt) != 1 else declared.checks:
        check(steps, None, prompt[0][0])


def check_apart(model: ModelPatcher, other_model: ModelPatcher, name: str) -> None:
    """Raises ValueError, before the picture is walked by one model and its edit by the other (the input `name`), for
    controls, which need both sides at every step."""
    one, other = (m.model_options.get("transformer_options", {}).get(_DECLARED) for m in (model, other_model))
    if one is not None or (other is not None and other.mirror is None):
        raise ValueError(
            f"A control node (attention or guidance) reads the picture's side at each step, but with `{name}` connected"
            f" the picture is walked by itself. Leave the control out, or put it on `{name}` with a `mirror` connected."
        )


def check_uncontrolled(patcher: ModelPatcher, name: str) -> None:
    """Raises ValueError, before any work of the node of that name, for controls on the model: that node walks the
    picture first and its edits later, and controls need both at every step."""
    if patcher.model_options.get("transformer_options", {}).get(_DECLARED) is not None:
        raise ValueError(
            f"A control node (attention or guidance) reads the picture's side at each step, and {name} walks the "
            "picture by itself. Leave the control out; CycleDiffusion Edit takes it."
        )


def get_reference(options: dict) -> "ReferencePass | None":
    """The source side of the sampling that runs, from an attention patch's extra options or transformer options."""
    return options.get(_REFERENCE)


def active_reference(options: dict, control: Control = Control.ATTENTION) -> "ReferencePass | None":
    """`get_reference` while the source is recorded and where this kind of control acts, else None."""
    reference = get_reference(options)
    if reference is None or reference.step is None:
        return None
    return reference if reference.recording or acts(control, options) else None


def _check_grid(mirror: Mirror, sigmas: Tensor) -> None:
    """Raises ValueError unless the sampler takes the mirror's own steps, one after the other, or none."""
    if len(sigmas) < 2:
        return
    steps = [step_of(mirror.sigmas, sigma) for sigma in sigmas[:-1]]
    ends = mirror.sigmas[steps[-1] + 1]
    if steps != list(range(steps[0], steps[0] + len(steps))) or abs(float(sigmas[-1] - ends)) > NEAR * float(sigmas[0]):
        raise ValueError("The sampler leaves out steps of the mirror. Give it the mirror's own steps and scheduler.")


def _prompt(mirror: Mirror, conditioning: Conditioning | None) -> Conditioning:
    if conditioning is None:
        entries = [[mirror.source, {}]]
        return entries if mirror.pooled is None else with_pooled(entries, mirror.pooled[:1])
    if len(conditioning) != 1 or text_of(conditioning).shape[1] != mirror.source.shape[1]:
        raise ValueError(
            f"The source's CONDITIONING has {text_of(conditioning).shape[1]} tokens in {len(conditioning)} part(s) and "
            f"the mirror's prompt {mirror.source.shape[1]} in one. Connect the prompt that the mirror was made with."
        )
    return with_pooled(conditioning, mirror.pooled)


def _around_sampling(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    """Readies the reference pass. Raises ValueError, before work, where there is no source or one that does not fit."""
    guider = executor.class_obj
    check_no_step_cache(guider.model_options)
    options = guider.model_options["transformer_options"]
    declared, supplied, walked_here = options[_DECLARED], options.get(_SUPPLIED), _SUPPLIED in options
    mirror = declared.mirror or supplied
    if isinstance(supplied, SharedNoise):
        options[_REFERENCE] = Shared(
            declared.sides, guider, sigmas.cpu(), tuple(noise.shape[-2:]), declared.checks
        )
    elif isinstance(mirror, Mirror):
        options[_REFERENCE] = _of_mirror(mirror, declared, guider, noise.shape, sigmas, walked_here)
    elif not walked_here:
        raise ValueError(NO_SOURCE)
    return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)


def _of_mirror(
    mirror: Mirror, declared: Declared, guider, shape: torch.Size, sigmas: Tensor, walked_here: bool
) -> Recorded:
    """The recording as reference; its prompt is added to those that the host processes."""
    check_shape(mirror, shape)
    _check_grid(mirror, sigmas)
    for check in declared.checks:
        check(mirror.steps, mirror.source, None if walked_here else _text_of_positive(guider))
    if not declared.sides:
        return Recorded(mirror, declared.sides, guider)
    sampling = guider.model_patcher.get_model_object("model_sampling")
    texts = mirror.embeddings if mirror.provenance.rewrote_positive else mirror.source.expand(mirror.steps, -1, -1, -1)
    prompt = scheduled(declared.conditioning or _prompt(mirror, None), texts, mirror.sigmas, sampling)
    guider.conds = {**guider.conds, PROMPT: comfy.sampler_helpers.convert_cond(prompt)}
    return Recorded(mirror, declared.sides, guider)


def _text_of_positive(guider) -> Tensor | None:
    """[B or 1, tokens, width] of a sampler's positive prompt, not processed yet, if it has one part."""
    entries = guider.conds.get("positive") or []
    return entries[0].get("cross_attn") if len(entries) == 1 else None


def _around_prediction(executor, x, sigma, model_options, seed=None):
    """The source side of a walk under shared noise is recorded while it is evaluated."""
    options = model_options["transformer_options"]
    reference = get_reference(options)
    if isinstance(reference, Shared) and branch_of(options) is Branch.SOURCE:
        return reference.evaluate(executor, x, sigma, model_options, seed)
    return executor(x, sigma, model_options, seed)


def _around_evaluation(executor, model, conds, x, sigma, model_options):
    """The source is recorded before an evaluation that a control may act on."""
    options = model_options["transformer_options"]
    if branch_of(options) in CONTROLLED:
        reference = get_reference(options)
        if reference is None:
            raise ValueError(NO_SOURCE)
        reference.record(model, conds, x, sigma, model_options)
    return executor(model, conds, x, sigma, model_options)
