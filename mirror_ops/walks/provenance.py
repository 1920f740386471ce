"""Where a mirror comes from: model, settings and cost, as a value that can be compared and kept in a file."""

import dataclasses
import json
from dataclasses import dataclass
from enum import Enum

from pydantic import TypeAdapter, ValidationError


class Side(str, Enum):
    """One of guidance's two prompts."""

    POSITIVE = "positive"
    NEGATIVE = "negative"


ENCODERS = DPM, EDIT_FRIENDLY = "dpm-encoder", "edit-friendly"  # what finds a stochastic sampler's noises
STRICT = {"extra": "forbid"}  # when read from a file
KIND = ("architecture", "prediction", "sampling", "latent_format", "latent_channels", "noise_schedule")


@dataclass(frozen=True)
class ModelIdentity:
    """Which model: what kind (the first six), and a fingerprint of its weights and of the patches on them."""

    __pydantic_config__ = STRICT

    architecture: str
    prediction: str
    sampling: str  # how the network's output is read
    latent_format: str
    latent_channels: int
    noise_schedule: str | None  # None for flow models: a shift moves a scheduler's levels, not what a level means
    precision: str  # the dtype that the weights are stored in
    weights: str  # digest of samples of the weights, without patches
    patches: str  # "", or how many weights are patched (LoRA, merges), how strongly, and a digest of the patches

    def require(self, other: "ModelIdentity", what: str) -> None:
        """Raises ValueError, saying what differs, unless `other` is a model of this kind with the same weights.

        `what` was made with this model ("This mirror"). Weights that are stored in another precision cannot be told
        from other weights: they pass, see `differences`.
        """
        for name in KIND:
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"{what} was made with a model whose {name.replace('_', ' ')} is {getattr(self, name)}; the "
                    f"connected model's is {getattr(other, name)}. Connect the model that made it, or make it again."
                )
        if self.precision == other.precision and self.weights != other.weights:
            raise ValueError(
                f"{what} was made with another checkpoint of the same architecture ({self.architecture}, weights "
                f"{self.weights}; the connected model's are {other.weights}), so its steps are not this model's. "
                "Connect the model that made it, or make it again."
            )

    def differences(self, other: "ModelIdentity") -> list[str]:
        """What differs in ways that one may want, as plain words: patched weights, and their precision."""
        found = []
        if self.patches != other.patches:
            mine, others = _patched(self.patches), _patched(other.patches)
            found.append(f"its weights had {mine}, the connected model's have {others}")
        if self.precision != other.precision:
            found.append(f"its weights were {self.precision}, the connected model's are {other.precision}")
        return found


def _patched(patches: str) -> str:
    return f"patches (LoRA or merge: {patches})" if patches else "no patches"


@dataclass(frozen=True)
class Provenance:
    """How a mirror was made and what it cost."""

    __pydantic_config__ = STRICT

    model: ModelIdentity
    method: str  # the rewriter's or encoder's name, or "from a seed"
    cfg: float = 1.0  # the guidance at which it holds
    side: Side = Side.POSITIVE  # which prompt was rewritten
    start: Side = Side.POSITIVE  # which prompt rewriting started from
    scheduler: str = ""
    seed: int | None = None
    label: str = ""  # the level that the network was told at each inversion step
    refine: int = 0  # fixed-point iterations at each inversion step
    mixing: str = ""
    regularise: str = ""
    forwards: float = 0.0  # network rows per picture, both ways
    backwards: float = 0.0
    evaluations: tuple[int, ...] = ()  # [T] inside the rewriter
    losses: tuple[tuple[float, ...], ...] = ()  # [T][B] mean squared distance to the recorded latent
    residuals: tuple[tuple[float, ...], ...] = ()  # [T][B] the last one of each refined step

    @property
    def rewrote_positive(self) -> bool:
        """Whether the describing prompt itself was rewritten, else the negative."""
        return self.side == Side.POSITIVE

    @property
    def is_noisy_path(self) -> bool:
        """Whether the recording is a stochastic sampler's path, which predictions alone do not walk."""
        return self.method in ENCODERS

    @property
    def brings_negative(self) -> bool:
        """Whether the negative prompt is made of the describing one, so that none has to be given."""
        return self.side == Side.NEGATIVE and self.start == Side.POSITIVE

    def to_json(self) -> str:
        """What `from_facts` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_facts(cls, facts: dict) -> "Provenance":
        """The inverse of json.loads(to_json()). Raises ValueError, naming the first field that does not fit."""
        try:
            return TypeAdapter(cls).validate_json(json.dumps(facts), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from error
