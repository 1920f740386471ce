"""diffusers' own CycleDiffusion and pix2pix-zero on the embedded model's weights, as walks from latents to latents.

diffusers is no part of the environment: `install` puts it into a folder of its own in the cache. Text encoder and VAE
are stand-ins that hand out what ours have made, so that only the walks are compared.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from harness.environment import SetupError, cache_key, cache_root, made, pip

PACKAGES = ("diffusers==0.42.1", "importlib_metadata==10.2.0", "zipp==4.1.2")
UNET = {
    "sample_size": 16, "in_channels": 8, "out_channels": 8, "block_out_channels": (64, 128, 192), "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 128,
    "attention_head_dim": (2, 4, 6),  # the number of heads, whatever its name
}
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
            "set_alpha_to_one": True, "steps_offset": 1}


def folder() -> Path:
    return cache_root() / f"diffusers-{cache_key(PACKAGES, sys.version_info[:2])}"


def install() -> None:
    """Puts diffusers into its folder in the cache, once: 10 MB."""
    def make(target: Path) -> None:
        packages = ("--target", str(target / "packages"), "--no-deps", *PACKAGES)
        pip(Path(sys.executable), "install", *packages, log=target / "install.log")
    made(folder(), make, "diffusers folder")


def load() -> None:
    """Makes diffusers importable. Raises SetupError, saying what to do, if it is not installed."""
    if importlib.util.find_spec("diffusers") is None:
        sys.path.append(str(folder() / "packages"))
        importlib.invalidate_caches()
    if importlib.util.find_spec("diffusers") is None:
        raise SetupError("The pairs with diffusers need diffusers. `python run.py bench speed --install-diffusers` "
                         "puts it into a folder of its own in the cache (10 MB).")


class Texts(nn.Module):
    """Tokenizer and text encoder at once: known texts only, each a token, each with a given embedding [1, 77, C]."""

    model_max_length = 77
    added_tokens_encoder: dict = {}

    def __init__(self, embeddings: dict[str, Tensor]):
        super().__init__()
        self.names, self.embeddings = list(embeddings), torch.cat(list(embeddings.values()))
        self.config, self.dtype, self.device = SimpleNamespace(), torch.float32, torch.device("cpu")

    def tokenize(self, text: str) -> list[str]:
        return [text]

    def forward(self, texts, attention_mask=None, **settings):
        if isinstance(texts, Tensor):
            return (self.embeddings[texts[:, 0]],)
        names = [texts] if isinstance(texts, str) else texts
        return SimpleNamespace(input_ids=torch.tensor([[self.names.index(name)] for name in names]))


class Latent(nn.Module):
    """A VAE that encodes every picture to the given latent."""

    def __init__(self, latent: Tensor):
        super().__init__()
        self.latents = latent
        self.config = SimpleNamespace(scaling_factor=1.0, block_out_channels=(1, 1, 1, 1), latent_channels=8)
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def encode(self, picture: Tensor):
        return SimpleNamespace(latents=self.latents)


def unet_of(network: nn.Module, config: dict):
    """diffusers' UNet with the weights of the host's network of this configuration."""
    import comfy.utils
    from diffusers import UNet2DConditionModel
    weights = network.state_dict()
    names = comfy.utils.unet_to_diffusers(config)
    unet = UNet2DConditionModel(**UNET)
    unet.load_state_dict({theirs: weights[ours] for theirs, ours in names.items() if ours in weights})
    return unet.requires_grad_(False).eval()


def cycle_diffusion(unet, texts: dict[str, Tensor], latent: Tensor):
    """edit(source, target, steps, cfg, seed) -> latent [1, C, H, W], at strength 1 and eta 0.1."""
    from diffusers import CycleDiffusionPipeline, DDIMScheduler
    stand_in = Texts(texts)
    pipeline = CycleDiffusionPipeline(Latent(latent), stand_in, stand_in, unet, DDIMScheduler(**SCHEDULE), None, None,
                                      requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    picture = torch.zeros(1, 3, *(8 * side for side in latent.shape[-2:]))

    def edit(source: str, target: str, steps: int, cfg: float, seed: int) -> Tensor:
        return pipeline(
            target, source, picture, strength=1.0, num_inference_steps=steps, guidance_scale=cfg, eta=0.1,
            source_guidance_scale=1.0, generator=torch.Generator().manual_seed(seed), output_type="latent").images

    return edit


def pix2pix_zero(unet, texts: dict[str, Tensor], direction: Tensor):
    """edit(source, noise, steps, cfg, amount) -> latent [1, C, H, W], both of its walks."""
    from diffusers import DDIMScheduler, StableDiffusionPix2PixZeroPipeline
    stand_in = Texts(texts)
    pipeline = StableDiffusionPix2PixZeroPipeline(
        Latent(None), stand_in, stand_in, unet, DDIMScheduler(**SCHEDULE), None, None, None, None, None,
        requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)

    def edit(source: str, noise: Tensor, steps: int, cfg: float, amount: float) -> Tensor:
        side = 8 * noise.shape[-1]
        return pipeline(
            source, torch.zeros_like(direction), direction, side, side, num_inference_steps=steps, guidance_scale=cfg,
            negative_prompt="", latents=noise, cross_attention_guidance_amount=amount, output_type="latent").images

    return edit
