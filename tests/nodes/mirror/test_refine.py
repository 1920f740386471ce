"""Refinement of the inversion in the real executor: mixings, and the residual it leaves."""

import torch
from support.tiny import Scene, unet


def test_mixings_differ_and_residuals_say_what_the_way_back_misses(run_graph):
    def strong():
        model = unet()
        model.model.diffusion_model.out[-1].weight.data.mul_(1.5)
        return model

    scene = Scene(strong, steps=10)
    made = {name: scene.invert(Scene.NONE, refine=4, mixing=name) for name in ("plain", "averaged", "anderson")}
    made["none"] = scene.invert(Scene.NONE)
    reports = [scene.add("MirrorReport", mirror=made[name](2)) for name in ("anderson", "none")]
    run = run_graph(scene)
    mirrors = {name: run.outputs[node.id][2] for name, node in made.items()}
    lost = {name: mirror.displacement[-1].item() for name, mirror in mirrors.items()}
    residual = {name: torch.tensor(mirror.provenance.residuals) for name, mirror in mirrors.items()}
    assert residual["none"].numel() == 0 and residual["plain"].shape == (10, 1)
    assert len(set(lost.values())) == 4
    assert max(lost["averaged"], lost["anderson"], lost["plain"]) < lost["none"] / 3
    assert lost["anderson"] < lost["plain"] and residual["anderson"].mean() < residual["plain"].mean()
    assert {mirror.provenance.forwards for name, mirror in mirrors.items() if name != "none"} == {10 * 6}
    hints = [run.outputs[report.id][4] for report in reports]
    assert f"residual of a step is at most {residual['anderson'].max():.1e}" in hints[0] and "residual" not in hints[1]
