"""What other packs put on a MODEL, and whether a walk can live with it."""

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .conditioning import Conditioning
from .families import check_supported
from .text_fit import check_fits

PACK = __name__.rsplit(".nodes.", 1)[0]


def check_walks(model: ModelPatcher, prompts: dict[str, Conditioning], latent: Tensor) -> None:
    """Raises ValueError for a model and prompts that `denoiser.run` refuses; to be asked before another model walks."""
    check_no_step_cache(model.model_options)
    check_supported(model, latent)
    check_fits(model, prompts, latent)


def check_no_step_cache(model_options: dict) -> None:
    """Raises ValueError for a model that EasyCache or LazyCache lets skip passes.

    They take a step's prediction from those before it. A walk looks several times at a level, forward, backward and for
    two branches in turn, and must see the same each time.
    """
    cache = model_options.get("transformer_options", {}).get("easycache")
    if cache is not None:
        name = getattr(cache, "name", "EasyCache")
        raise ValueError(
            f"{name} on this model skips passes through the network, so that a picture could not come back. Connect "
            f"the model from before the {name} node."
        )


def wants_negative(model_options: dict) -> bool:
    """Whether a patch of another pack asks for the negative's prediction at cfg 1 too (Self-Attention Guidance).

    This pack's own patches do, and do nothing where there is none.
    """
    if not model_options.get("disable_cfg1_optimization", False):
        return False
    lists = (model_options.get(f"sampler_{when}_cfg_function", ()) for when in ("pre", "post"))
    return any(not function.__module__.startswith(PACK) for functions in lists for function in functions)
