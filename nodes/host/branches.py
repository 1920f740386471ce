"""Who is being evaluated, and which control acts on whom.

Our own walks evaluate several branches with one patched model. Each evaluation is `marked` with its branch in the
transformer options; every control asks `acts` before it changes anything.
"""

from enum import Enum

_BRANCH = "mirror_branch"


class Branch(Enum):
    """Whom an evaluation of the network is for."""

    SAMPLER = "sampler"  # whatever an ordinary sampler evaluates: nothing is marked
    SOURCE = "source"  # the picture as it was, one side of a walk of ours
    REFERENCE = "reference"  # the source side while controls read it, at the step of the edit
    EDIT = "edit"  # the edited side
    POLISH = "polish"  # the finished edit drawn again: no control acts, which would hold it to the picture once more
    PROBE = "probe"  # the edited prompt on the recording, to find where the edit acts


# Beside the positive prompt of the edit: the same less one whole edit, which MirrorDiffusion's cycle loss asks for.
ONE_EDIT_LESS = "mirror_one_edit_less"


class Control(Enum):
    """What a model can be patched with."""

    ATTENTION = "attention"  # prompt-to-prompt's and MasaCtrl's maps, keys and values
    GRADIENT = "gradient"  # cross-attention guidance: moves the latent before the prediction
    GUIDANCE = "guidance"  # proximal guidance: changes how two predictions are combined
    PULL = "pull"  # inversion and reconstruction guidance, local blend: moves where the step arrives


_EDITED = frozenset({Branch.SAMPLER, Branch.EDIT})
ACTS_ON = {
    Control.ATTENTION: _EDITED | {Branch.PROBE},  # the network's own answer, which a probe is to see
    Control.GRADIENT: _EDITED,
    Control.GUIDANCE: _EDITED,
    Control.PULL: _EDITED,
}
CONTROLLED = frozenset().union(*ACTS_ON.values())  # what any control acts on, and so may read the source beside


def branch_of(options: dict) -> Branch:
    """The branch of these transformer options, or of an attention patch's extra options."""
    return options.get(_BRANCH, Branch.SAMPLER)


def acts(control: Control, options: dict) -> bool:
    """Whether this kind of control changes the evaluation that these transformer options belong to."""
    return branch_of(options) in ACTS_ON[control]


def marked(model_options: dict, branch: Branch) -> dict:
    """Model options that say which branch is evaluated."""
    return {**model_options, "transformer_options": {**model_options.get("transformer_options", {}), _BRANCH: branch}}
