"""Energies as nodes: what MirrorLatentGuidance leads pictures towards."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from comfy_api.latest import io

from ...demo import classifier
from ...demo.scene import ATTRIBUTES
from ...mirror_ops.stochastic.energies import Energy, class_likelihood, likeness
from ..host.clip_space import check_belong, image_embedding, text_embedding
from ..host.differentiable_clip import embedder
from ..types import category

EnergyType = io.Custom("MIRROR_ENERGY")


@dataclass(frozen=True)
class Term:
    """One energy on the wire, which carries a tuple of them: their sum."""

    weight: float
    says: str  # what it wants, for tables and to tell walks apart
    patchers: tuple  # the host's models that it needs
    open: Callable[[], Energy]  # once these are loaded
    pictures: int = 1  # that it leads to: one, or one for each that is looked for


def check_pictures(terms: tuple[Term, ...], latents: int) -> None:
    """Raises ValueError for an energy of several pictures that are not one for each of so many latents."""
    for term in terms:
        if term.pictures not in (1, latents):
            raise ValueError(
                f"A Mirror Picture Energy has {term.pictures} pictures and `latent` {latents}: connect one picture, or "
                "one for each latent."
            )


def _weight(default: float, hint: str) -> io.Float.Input:
    return io.Float.Input("weight", default=default, min=0.0, max=1e5, step=1.0, tooltip=hint)


def _more():
    return EnergyType.Input("energy", optional=True, tooltip="Another one, to which this is added.")


VIEWS = {"default": 16, "min": 1, "max": 200}
VIEWS_HINT = "Distorted copies that are looked at each time; 50 in the paper. Few leave patterns only CLIP sees."


class MirrorTextEnergy(io.ComfyNode):
    """Pictures that fit a text."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorTextEnergy",
            display_name="Mirror Text Energy",
            category=category(__name__),
            description="Low where CLIP finds a picture to fit the text. For Mirror Latent Guidance.",
            search_aliases=["clip guidance"],
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="Judges the picture; of the same CLIP as `clip`."),
                io.Clip.Input("clip", tooltip="Its text side, loaded by itself with Load CLIP."),
                io.String.Input("text", default="", multiline=True, tooltip="What the picture should show."),
                _weight(500.0, "300 to 1000 in the paper."),
                io.Int.Input("views", **VIEWS, tooltip=VIEWS_HINT),
                _more(),
            ],
            outputs=[EnergyType.Output(display_name="energy")],
        )

    @classmethod
    def execute(cls, clip_vision, clip, text, weight, views, energy=()) -> io.NodeOutput:
        if not text.strip():
            raise ValueError("`text` is empty. Say what should be in the picture.")
        target = text_embedding(clip, text)
        # a grey picture, to find out before any walk whether the two belong together
        check_belong(image_embedding(clip_vision, torch.full((1, 32, 32, 3), 0.5)), target)
        return io.NodeOutput((*energy, _clip_term(clip_vision, target, weight, views, f"text {text.strip()!r}")))


class MirrorPictureEnergy(io.ComfyNode):
    """Pictures like another one."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorPictureEnergy",
            display_name="Mirror Picture Energy",
            category=category(__name__),
            description="Low where CLIP finds a picture to be like the given one. For Mirror Latent Guidance.",
            search_aliases=["image guidance", "clip similarity"],
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="Judges how like the two pictures are."),
                io.Image.Input("image", tooltip="One for all pictures, or one for each."),
                _weight(500.0, "As for texts; higher is closer."),
                io.Int.Input("views", **VIEWS, tooltip=VIEWS_HINT),
                _more(),
            ],
            outputs=[EnergyType.Output(display_name="energy")],
        )

    @classmethod
    def execute(cls, clip_vision, image, weight, views, energy=()) -> io.NodeOutput:
        target = image_embedding(clip_vision, image[..., :3])
        says = f"picture {float(target.double().square().sum()):.9g} {float(target.double().sum()):.9g}"
        return io.NodeOutput((*energy, _clip_term(clip_vision, target, weight, views, says)))


def _clip_term(clip_vision, target: torch.Tensor, weight: float, views: int, says: str) -> Term:
    def opened() -> Energy:
        return likeness(embedder(clip_vision), target, views)

    return Term(weight, f"{says}, {views} views", (clip_vision.patcher,), opened, len(target))


class MirrorDemoEnergy(io.ComfyNode):
    """Pictures in which the demo's classifier sees something."""

    @classmethod
    def define_schema(cls):
        kinds = [
            io.DynamicCombo.Option(name, [
                io.Combo.Input("value", options=list(values), default=values[1], tooltip="What it should see there."),
            ])
            for name, values in ATTRIBUTES.items()
        ]
        return io.Schema(
            node_id="MirrorDemoEnergy",
            display_name="Mirror Demo Energy",
            category="mirror/demo",
            description="Low where the classifier that comes with the demo model sees the attribute in a picture.",
            search_aliases=["classifier guidance"],
            inputs=[
                io.DynamicCombo.Input("attribute", options=kinds, tooltip="What of a picture the classifier looks at."),
                _weight(5.0, "5 in the paper, for a classifier."),
                _more(),
            ],
            outputs=[EnergyType.Output(display_name="energy")],
        )

    @classmethod
    def execute(cls, attribute, weight, energy=()) -> io.NodeOutput:
        name, value = attribute["attribute"], attribute["value"]

        def opened() -> Energy:
            model = classifier.load().requires_grad_(False)
            return class_likelihood(lambda p: model(2 * p.cpu() - 1)[name], ATTRIBUTES[name].index(value))

        return io.NodeOutput((*energy, Term(weight, f"{name} {value}", (), opened)))
