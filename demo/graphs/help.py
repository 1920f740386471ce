"""Pictures of the help pages that no template shows: drawn by `python run.py graphs` of what small graphs come to."""
from __future__ import annotations

from harness.editor import to_ui

from .edit import SETTINGS
from .parts import EDIT, PAPER, Graph, before_and_after, compared, decoded, invert, sample_locally, start, words

LABELS = "before, given back, edited"
FULL, LOCAL = {"region": "everywhere", "settings": "bold"}, {"region": "auto", "settings": "balanced"}


def saved_mirror(host):
    """A mirror from a file: the picture given back, and edited."""
    g, s, before, after = _fox_to_dog()
    mirror = g.add("RedescribedDDIMInvert", **invert(s.model, before, s.latent),
                   rewriter=[g.add("PromptRewriteOptimizer", **PAPER), 0])
    kept = _through_a_file(g, "Trajectory", mirror=[mirror, 2])
    edit = g.add("MirrorSample", **sample_locally(s.model, kept, after))
    compared(g, s.picture, *(decoded(g, [edit, slot], s.vae) for slot in (1, 0)), labels=LABELS)
    return _last_of(host, g)


def saved_direction(host):
    """A direction from a file, on a picture that it was not made of."""
    g = Graph()
    s = start(g, seed=1_000_021, species="fox", edit="species", edit__to="dog")
    [before] = words(g, s.clip, ("what is in the picture", [s.scene, 1]))
    direction = g.add("CLIPDomainDirection", clip=s.clip, source="fox", target="dog",
                      sentences="template bank: things")
    kept = _through_a_file(g, "Direction", direction=[direction, 0])
    edit = g.add("MirrorEdit", model=s.model, source=before, target=before, latent=s.latent, direction=kept,
                 **SETTINGS)
    compared(g, s.picture, decoded(g, [edit, 0], s.vae), [s.scene, 2], labels="before, edited, exact answer")
    return _last_of(host, g)


def saved_noises(host):
    """Noises from a file: the picture given back, and edited."""
    g, s, before, after = _fox_to_dog()
    code = g.add("CycleDiffusionEncode", model=s.model, positive=before, latent=s.latent, cfg=1.0, steps=42,
                 denoise=.85, encoder="edit-friendly", encoder__seed=0, encoder__eta=1.0, scheduler="ddim_uniform")
    file = g.add("CycleDiffusionSave", code=[code, 4], filename_prefix="mirror/noises")
    noises = g.add("CycleDiffusionReplay", code=[g.add("CycleDiffusionLoad", file=[file, 0]), 0], skip=0)
    drawn = []
    for prompt, cfg in ((before, 1.0), (after, 1.5)):
        [empty] = words(g, s.clip, ("nothing", ""))
        guider = g.add("CFGGuider", model=s.model, positive=prompt, negative=empty, cfg=cfg)
        made = g.add("SamplerCustomAdvanced", noise=[noises, 0], guider=[guider, 0], sampler=[noises, 1],
                     sigmas=[noises, 2], latent_image=[noises, 3])
        drawn.append(decoded(g, [made, 0], s.vae))
    compared(g, s.picture, *drawn, labels=LABELS)
    return _last_of(host, g)


def attention_maps(host):
    """Where four words look."""
    g, s, before, _ = _fox_to_dog()
    mirror = g.add("RedescribedDDIMInvert", **invert(s.model, before, s.latent),
                   rewriter=[g.add("PromptRewriteOptimizer", method="none"), 0])
    g.add("MirrorAttentionMaps", model=s.model, mirror=[mirror, 2], clip=s.clip, text=[s.scene, 1],
          words="fox\nbackground\nglasses\nhat", image=s.picture)
    return _last_of(host, g)


def measured(host):
    """The exact answer, and two edits with what Mirror Metrics says of them inside and outside the edited region."""
    g, s, before, after = _fox_to_dog()
    edits, metrics = [], []
    for settings in (LOCAL, FULL):
        edit = g.add("MirrorEdit", model=s.model, source=before, target=after, latent=s.latent,
                     **{**SETTINGS, **settings})
        edits.append(decoded(g, [edit, 0], s.vae))
        metrics.append(g.add("MirrorMetrics", image=edits[-1], reference=[s.scene, 2], mask=[s.scene, 3]))
    found = _run(host, g)
    said = [f"in {found[key][2]:.0f} / out {found[key][3]:.0f} dB" for key in metrics]
    compared(g, [s.scene, 2], *edits, labels=", ".join(["exact answer", *said]))
    return _last_of(host, g)


PICTURES = {"saved_mirror": saved_mirror, "saved_direction": saved_direction, "saved_noises": saved_noises,
            "attention_maps": attention_maps, "measured": measured}
PAGES = {"MirrorSaveTrajectory": "saved_mirror", "MirrorLoadTrajectory": "saved_mirror",
         "MirrorSaveDirection": "saved_direction", "MirrorLoadDirection": "saved_direction",
         "CycleDiffusionSave": "saved_noises", "CycleDiffusionLoad": "saved_noises",
         "MirrorAttentionMaps": "attention_maps", "MirrorMetrics": "measured"}


def _fox_to_dog():
    g = Graph()
    s = start(g, species="fox", edit="species", edit__to="dog")
    before, after = before_and_after(g, s)
    g.group = EDIT
    return g, s, before, after


def _through_a_file(g: Graph, noun: str, **kept) -> list:
    """What was given, written to a file and read back."""
    file = g.add(f"MirrorSave{noun}", **kept, filename_prefix=f"mirror/{noun.lower()}")
    return [g.add(f"MirrorLoad{noun}", file=[file, 0]), 0]


def _run(host, g: Graph) -> dict[str, list]:
    """Outputs by node, with the defaults of what was left out, as the editor fills them in."""
    return host.run_graph(host.ui_to_api(to_ui(g.sheet(""), host.object_info())), cached=True).outputs


def _last_of(host, g: Graph):
    """The first output of the graph's last node, a picture [H, W, 3] in [0, 1]."""
    return _run(host, g)[list(g.nodes)[-1]][0][0]
