"""The graphs of distilled edits: how one is made, and how one is used."""
from __future__ import annotations

from harness.editor import Sheet

from .edit import SETTINGS
from .parts import COMPARE, EXAMPLE, PICTURE, WORDS, Graph, compared, decoded, saved, start, template, words

PAIRS, TRAIN, USE = "1 pairs", "2 train", "3 use"
VAE_KEEPS = 22.0        # dB outside the region: what training wants there is the picture itself, whatever the VAE did
NAME, SHIPPED = "fox to dog", "fox_to_dog.safetensors"

MAKE_NOTE = """## Teach an edit to a small network

1. **Pairs**: run this some hundred times, with the scene's seed set to *randomize*. Good edits are kept.
   From a folder of pictures: see the help of *Mirror Save Pair*.
2. **Train**: unmute it (Ctrl-M), mute the others, run. Stop when you like; run again to go on.
3. **Use**: choose what came of it in *Load Upscale Model*. The edit that is chosen now ships with the pack.

**Press Run.**"""

USE_NOTE = """## Use a taught edit

One pass of a small network instead of a diffusion model's many: the node says how many pictures a second it does.

**Choose your picture.** The edit that ships with the pack makes dogs of cartoon foxes of 128 x 128 and knows nothing
else; template 19 teaches your own.

For a whole folder save this graph and give it to `python run.py translate IN OUT --workflow FILE.json`, in a clone of
the pack's repository.

**Press Run.**"""


@template("19 Teach an edit to a small network")
def distil_edit() -> Sheet:
    """An edit taught to a small network: pairs, training, use."""
    g = Graph()
    g.group = PAIRS
    s = start(g, species="fox", edit="species", edit__to="dog")
    before, after = words(g, s.clip, ("what is in the picture", "a photo of a fox"),
                          ("what should be there", "a photo of a dog"))     # the same for every scene
    g.groups[PAIRS] += g.groups.pop(WORDS)
    g.group = PAIRS
    edit = g.add("MirrorEdit", model=s.model, source=before, target=after, latent=s.latent, **SETTINGS)
    g.add("MirrorSavePair", before=s.picture, after=decoded(g, [edit, 0], s.vae), region=[edit, 1], folder=NAME,
          outside=VAE_KEEPS)
    g.group = TRAIN
    g.add("MirrorTrainEdit", folder=NAME, name=NAME, steps=3000, batch=8, size=128, loss="pixels, edges, adversarial",
          width=8)
    g.group = USE
    loaded = g.add("UpscaleModelLoader", model_name=SHIPPED)
    made = g.add("MirrorApplyEdit", edit=[loaded, 0], image=s.picture, strength=1.0, paste=True, widen=2, soften=2)
    g.add("MirrorCompare", reference=s.picture, images__image0=[made, 0], images__image1=[s.scene, 2],
          labels="before\ndistilled edit\nexact answer", gain=4.0, tile=384)
    return g.sheet(MAKE_NOTE, notes_in=PAIRS, muted=(TRAIN,))


@template("20 Use a taught edit on a picture or a folder")
def distilled() -> Sheet:
    """A distilled edit on a picture, or on a folder of them."""
    g = Graph()
    g.group = PICTURE
    loaded = g.add("LoadImage", "your picture", image=EXAMPLE)
    network = g.add("UpscaleModelLoader", model_name=SHIPPED)
    g.group = "2 edit"
    made = g.add("MirrorApplyEdit", edit=[network, 0], image=[loaded, 0], strength=1.0, paste=True, widen=2, soften=2)
    saved(g, [made, 0])
    compared(g, [loaded, 0], [made, 0], labels="before, edit")
    g.groups["3 compare"] = g.groups.pop(COMPARE)
    return g.sheet(USE_NOTE, notes_in=PICTURE)
