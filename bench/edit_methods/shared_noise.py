"""Picture and edit walked under the same noise: ours, its presets and controls, FlowEdit and InfEdit."""

from __future__ import annotations

import itertools

from harness.graph import Graph

from .parts import STEPS, Made, Method, Wires, defaults_of

GUIDANCE = {"cfg": 1.5, "cfg_until": 1.0, "cfg_after": 1.5, "source_cfg": 1.0, "draws": 1, "jump": False,
            "coarse": False, "antithetic": False}      # `custom` as published walks have it
LATE = .4       # of the walk: before it, mutual self-attention keeps the old shape


def edit_picture(g: Graph, w: Wires, settings: str = "", model: list | None = None, paste: bool = True,
                 steps: int | None = None, **changes) -> Made:
    """MirrorEdit as it comes, but without polish, or with `changes`, and the original's own pixels put back; without
    `paste` decoded only.

    `changes` to the guidance make it the node's `custom`. `steps` of a bench of STEPS; default: the node's own.
    """
    guided = {name: changes.pop(name) for name in GUIDANCE if name in changes}
    choice = {"settings": "custom", **{f"settings__{k}": v for k, v in {**GUIDANCE, **guided}.items()}} if guided else (
        {"settings": settings} if settings else {})
    inputs = {"model": model or w.model, "source": w.before, "target": w.after, "latent": w.latent(g), **choice}
    own = {**defaults_of(w, "MirrorEdit"), "polish": 0.0}
    steps = steps_of(w, steps)
    edit = g.add("MirrorEdit", **{**own, **inputs, "steps": steps, **changes})
    return put_back(g, w, edit(0)) if paste else Made(edit(0), region=edit(1))


def put_back(g: Graph, w: Wires, edited: list) -> Made:
    """Paste Edit onto Original, of an edited LATENT."""
    decoded = g.add("VAEDecode", samples=edited, vae=w.vae)()
    pasted = g.add("MirrorPaste", **{**defaults_of(w, "MirrorPaste"), "original": w.image, "edited": decoded,
                                     "vae": w.vae})
    return Made(None, picture=pasted(0), region=pasted(1))


def steps_of(w: Wires, steps: int | None = None) -> int:
    """The steps that a bench of STEPS takes, or the node's own, as many fewer as the bench takes."""
    return round((steps or defaults_of(w, "MirrorEdit")["steps"]) * w.steps / STEPS)


def controlled(g: Graph, w: Wires, control: str, settings: str = "", **inputs) -> Made:
    """Edit Picture with one of the control nodes on its model, which reads the walk's own source side."""
    own = {
        "MirrorPromptToPrompt": {"clip": w.clip, "source_text": w.words_before, "target_text": w.words_after},
        "MirrorMutualSelfAttention": {"first_step": round(LATE * steps_of(w)), "first_layer": w.decoder},
    }.get(control, {})
    model = g.add(control, **{**defaults_of(w, control), "model": w.model, **own, **inputs})()
    return edit_picture(g, w, settings, model)


def in_turn(g: Graph, w: Wires, **changes) -> Made:
    """One Edit Picture for each attribute, in a chain, and the original's own pixels put back at the end.

    A picture with fewer changes than others of its batch is given back by the edits that have none for it.
    """
    texts = [w.before, w.between, w.further][:w.changes] + [w.after]
    latent = w.latent(g)
    for before, after in itertools.pairwise(texts):
        latent = edit_picture(g, w._replace(before=before, after=after), latent=latent, paste=False, **changes).edited
    return put_back(g, w, latent)


def flow_edit(g: Graph, w: Wires, source_cfg: float, cfg: float, denoise: float, paste: bool = False) -> Made:
    """Both sides guided away from no words, from a noise level below the highest on (Kulikov et al. 2024)."""
    return edit_picture(g, w, paste=paste, region="everywhere", negative=w.empty, source_cfg=source_cfg, cfg=cfg,
                        cfg_after=cfg, denoise=denoise, steps=round(denoise * STEPS))


def inf_edit(g: Graph, w: Wires, cfg: float) -> Made:
    """Virtual inversion without attention control (Xu et al. 2023): each step jumps to where the edit is seen."""
    return edit_picture(g, w, paste=False, region="everywhere", negative=w.empty, cfg=cfg, cfg_after=cfg, jump=True,
                        steps=STEPS)


METHODS = {
    "ours": Method(edit_picture, {}, ({"settings": "faithful"}, {"settings": "bold"}, {"region": "everywhere"}),
                   "Edit Picture without polish, and Paste Edit onto Original"),
    "ours-50": Method(edit_picture, {"steps": STEPS}, about="the same in 50 steps"),
    "ours-20": Method(edit_picture, {"steps": 20}, about="the same in 20 steps"),
    "ours-faithful": Method(edit_picture, {"settings": "faithful"}, about="the same, the preset `faithful`"),
    "ours-bold": Method(edit_picture, {"settings": "bold"}, about="the preset `bold`"),
    "ours-polished": Method(edit_picture, {"polish": .2}, about="as they come, with polish .2"),
    "ours-decoded": Method(edit_picture, {"paste": False}, about="without the original's pixels put back"),
    "ours-in-turn": Method(in_turn, about="an edit for each attribute, one after the other"),
    "ours-everywhere": Method(edit_picture, {"paste": False, "region": "everywhere"}, about="without a region"),
    "ours+guidance": Method(controlled, {"control": "MirrorCrossAttentionGuidance", "amount": .15},
                            ({"amount": .1}, {"amount": .25}, {"settings": "bold"}),
                            "with cross-attention guidance of .15"),
    "ours+p2p": Method(controlled, {"control": "MirrorPromptToPrompt", "cross_until": 1.0, "self_until": 0.0,
                                    "cross_weight": .3}, about="with the source's cross-attention maps, weight .3"),
    "ours+masactrl": Method(controlled, {"control": "MirrorMutualSelfAttention"},
                            about="with mutual self-attention from 40 % of the walk on"),
    "ours+proximal": Method(controlled, {"control": "MirrorProximalGuidance"}, about="with proximal guidance"),
    "ours+pull": Method(controlled, {"control": "MirrorInversionGuidance", "step_size": .5, "first_timestep": 600},
                        about="with inversion guidance towards the noised picture, .5 from timestep 600"),
    "flowedit": Method(flow_edit, {"source_cfg": 3.5, "cfg": 13.5, "denoise": .66},
                       ({"source_cfg": 1.5, "cfg": 5.5, "denoise": .86},
                        {"source_cfg": 1.0, "cfg": 2.5, "denoise": .86},
                        {"source_cfg": 1.0, "cfg": 1.5, "denoise": 1.0}),
                       "FlowEdit at its settings for SD3, in a noise-predicting model: the last 33 of 50 steps"),
    "flowedit+paste": Method(flow_edit, {"source_cfg": 3.5, "cfg": 13.5, "denoise": .66, "paste": True},
                             about="FlowEdit with Paste Edit onto Original", tuned_as="flowedit"),
    "infedit": Method(inf_edit, {"cfg": 2.0}, ({"cfg": 1.0}, {"cfg": 1.5}, {"cfg": 4.0}),
                      "InfEdit's virtual inversion without its attention control, cfg 2"),
}
