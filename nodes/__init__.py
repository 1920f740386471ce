"""The nodes: schema, a few lines of wiring, return. One file for each family; a new node is listed in NODES."""

from comfy_api.latest import ComfyExtension, io

from .attention_maps import MirrorAttentionMaps
from .compare import MirrorCompare
from .cycle import CycleDiffusionEncode
from .cycle_edit import CycleDiffusionEdit
from .cycle_rank import CycleDiffusionRank
from .cycle_replay import CycleDiffusionLoad, CycleDiffusionReplay, CycleDiffusionSave
from .demo import MirrorDemoModel, MirrorDemoScene
from .direction import CLIPDomainDirection, MirrorApplyDirection
from .exact import MirrorExactInvert
from .files import MirrorLoadDirection, MirrorLoadTrajectory, MirrorSaveDirection, MirrorSaveTrajectory
from .invert import RedescribedDDIMInvert
from .metrics import MirrorMetrics
from .report import MirrorReport
from .inversion_guidance import MirrorInversionGuidance, MirrorReconstructionGuidance
from .proximal import MirrorProximalGuidance
from .rewriter import PromptRewriteOptimizer
from .sample import MirrorSample

NODES: list[type[io.ComfyNode]] = [
    RedescribedDDIMInvert,
    PromptRewriteOptimizer,
    CLIPDomainDirection,
    MirrorApplyDirection,
    MirrorSample,
    MirrorExactInvert,
    CycleDiffusionEncode,
    CycleDiffusionEdit,
    CycleDiffusionRank,
    CycleDiffusionReplay,
    CycleDiffusionSave,
    CycleDiffusionLoad,
    MirrorReport,
    MirrorInversionGuidance,
    MirrorReconstructionGuidance,
    MirrorMetrics,
    MirrorProximalGuidance,
    MirrorCompare,
    MirrorAttentionMaps,
    MirrorSaveDirection,
    MirrorLoadDirection,
    MirrorSaveTrajectory,
    MirrorLoadTrajectory,
    MirrorDemoModel,
    MirrorDemoScene,
]


class MirrorExtension(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> MirrorExtension:
    return MirrorExtension()
