"""The edit by words as one box, for the node library: a subgraph blueprint."""
from __future__ import annotations

from harness.blueprint import Box
from harness.editor import Sheet

from .edit import SETTINGS
from .parts import CHECKPOINT, DOG, EDIT, FOX, Graph, decoded, words

NAME = "Edit a picture (words)"


def box() -> tuple[Sheet, Box]:
    """What is inside, and what the box shows of it."""
    g = Graph()
    loader = g.add("CheckpointLoaderSimple", ckpt_name=CHECKPOINT)
    model, clip, vae = ([loader, slot] for slot in range(3))
    latent = g.add("VAEEncode", vae=vae)
    before, after = words(g, clip, ("what is in the picture", FOX), ("what should be there", DOG))
    g.group = EDIT
    edit = g.add("MirrorEdit", model=model, source=before, target=after, latent=[latent, 0], **SETTINGS)
    paste = g.add("MirrorPaste", edited=decoded(g, [edit, 0], vae), vae=vae)
    shown = Box(
        name=NAME,
        description="Changes what you name in a picture and keeps the rest: say what is in it, and the same again with "
                    "what should be there instead. Choose your checkpoint first.",
        aliases=["edit", "edit picture", "edit image", "prompt edit", "change object", "one box"],
        sockets=[("picture", [(latent, "pixels"), (paste, "original")])],
        widgets=[("what is in the picture", before[0], "text"), ("what should be there", after[0], "text"),
                 ("settings", edit, "settings"), ("strength", edit, "strength"), ("seed", edit, "seed"),
                 ("checkpoint", loader, "ckpt_name")],
        outputs=[("picture", paste, 0), ("mask", paste, 1), ("report", edit, 2)],
    )
    return Sheet(g.nodes, g.titles, g.groups), shown
