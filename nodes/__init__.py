"""The nodes: schema, a few lines of wiring, return. One file for each family; a new node is listed in NODES."""

from comfy_api.latest import ComfyExtension, io

from .attention_maps import MirrorAttentionMaps
from .caption import MirrorCaption, MirrorSentences
from .compare import MirrorCompare
from .cross_attention_guidance import MirrorCrossAttentionGuidance
from .cycle import CycleDiffusionEncode
from .cycle_edit import CycleDiffusionEdit
from .cycle_rank import CycleDiffusionRank
from .cycle_replay import CycleDiffusionLoad, CycleDiffusionReplay, CycleDiffusionSave
from .demo import MirrorDemoModel, MirrorDemoScene
from .demo_lora import MirrorDemoLora
from .direction import CLIPDomainDirection, MirrorApplyDirection
from .energies import MirrorDemoEnergy, MirrorPictureEnergy, MirrorTextEnergy
from .exact import MirrorExactInvert
from .files import MirrorLoadDirection, MirrorLoadTrajectory, MirrorSaveDirection, MirrorSaveTrajectory
from .from_seed import MirrorFromSeed
from .inversion_guidance import MirrorInversionGuidance, MirrorReconstructionGuidance
from .invert import RedescribedDDIMInvert
from .latent_guidance import MirrorLatentGuidance
from .metrics import MirrorMetrics
from .mutual_self_attention import MirrorMutualSelfAttention
from .prompt_to_prompt import MirrorPromptToPrompt
from .proximal import MirrorProximalGuidance
from .report import MirrorReport
from .rewriter import PromptRewriteOptimizer
from .sample import MirrorSample

NODES: list[type[io.ComfyNode]] = [
    RedescribedDDIMInvert,
    MirrorFromSeed,
    PromptRewriteOptimizer,
    CLIPDomainDirection,
    MirrorApplyDirection,
    MirrorSentences,
    MirrorCaption,
    MirrorSample,
    MirrorCrossAttentionGuidance,
    MirrorPromptToPrompt,
    MirrorMutualSelfAttention,
    MirrorProximalGuidance,
    MirrorInversionGuidance,
    MirrorReconstructionGuidance,
    MirrorExactInvert,
    CycleDiffusionEncode,
    CycleDiffusionEdit,
    CycleDiffusionRank,
    CycleDiffusionReplay,
    CycleDiffusionSave,
    CycleDiffusionLoad,
    MirrorLatentGuidance,
    MirrorTextEnergy,
    MirrorPictureEnergy,
    MirrorDemoEnergy,
    MirrorReport,
    MirrorMetrics,
    MirrorCompare,
    MirrorAttentionMaps,
    MirrorSaveDirection,
    MirrorLoadDirection,
    MirrorSaveTrajectory,
    MirrorLoadTrajectory,
    MirrorDemoModel,
    MirrorDemoScene,
    MirrorDemoLora,
]


class MirrorExtension(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> MirrorExtension:
    return MirrorExtension()
