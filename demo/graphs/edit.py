"""The graphs of the edit by words: a picture and two prompts, walked under the same noise."""
from __future__ import annotations

from harness.editor import Sheet

from .parts import (
    DOG,
    EDIT,
    FOX,
    Graph,
    Start,
    before_and_after,
    compared,
    decoded,
    saved,
    start,
    start_own,
    template,
    words,
)

EDIT_NOTE = """## Edit a picture by words

Say what is in the picture, and the same again with what should be there instead. Both are walked under the same noise:
what they share stays.

The model here draws cartoon animals, so that this runs without a download. For your own pictures open the template
*02 Edit your own picture by words*.

**Too weak?** Choose **bold**. **Too much?** Choose **faithful**.

**Press Run.**"""

OWN_NOTE = """## Edit your own picture

1. **Checkpoint**: choose an SD1.x, SD2 or SDXL one. The name there now is a placeholder: a model of cartoon animals.
2. **Picture**: choose yours. A large photo first through *Scale Image to Total Pixels*: .26 megapixels for SD1.x, 1 for
   SDXL.
3. **Words**: say what you see; below it the same with what should be there instead.

LoRAs and ControlNet go between the checkpoint and the edit.

**Press Run.**"""

SETTINGS = {"settings": "balanced", "steps": 25, "scheduler": "ddim_uniform", "strength": 1.0, "seed": 0,
            "region": "auto", "polish": .2}


def edited(g: Graph, s: Start, before: list, after: list, *others: list, labels: str) -> None:
    """Edit, decode, put the original's pixels back outside the region, save, compare."""
    g.group = EDIT
    edit = g.add("MirrorEdit", model=s.model, source=before, target=after, latent=s.latent, **SETTINGS)
    made = decoded(g, [edit, 0], s.vae)
    picture = [g.add("MirrorPaste", original=s.picture, edited=made, vae=s.vae), 0]
    saved(g, picture)
    compared(g, s.picture, picture, *others, labels=labels)


@template("01 Edit a picture by words")
def edit_picture() -> Sheet:
    """The flagship: on the embedded world, with the exact answer beside it."""
    g = Graph()
    s = start(g, species="fox", edit="species", edit__to="dog")
    before, after = before_and_after(g, s)
    edited(g, s, before, after, [s.scene, 2], labels="before, edit, exact answer")
    return g.sheet(EDIT_NOTE, app=app(g, words=[before[0], after[0]]))


@template("02 Edit your own picture by words")
def edit_own_picture() -> Sheet:
    """The same on the user's own picture and checkpoint."""
    g = Graph()
    s = start_own(g)
    before, after = words(g, s.clip, ("what is in the picture", FOX), ("what should be there", DOG))
    edited(g, s, before, after, labels="before, edit")
    return g.sheet(OWN_NOTE, app=app(g, [(s.model[0], "ckpt_name"), (s.scene, "image")], [before[0], after[0]]))


def app(g: Graph, first: list = (), words: list = ()) -> dict:
    """What App mode shows: the words, the settings that matter, and the edit."""
    kinds = {entry["class_type"]: key for key, entry in g.nodes.items()}
    settings = [(kinds["MirrorEdit"], name) for name in ("settings", "strength", "seed")]
    return {"inputs": [*first, *((key, "text") for key in words), *settings], "outputs": [kinds["SaveImage"]]}
