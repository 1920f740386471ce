"""Pictures through a VAE, also through one of videos."""

import torch
from torch import Tensor


def there_and_back(vae, image: Tensor) -> Tensor:
    """IMAGE [B, H, W, 3] encoded and decoded, with the shape in which stock VAE Decode returns it.

    A VAE of videos (Wan's, Qwen-Image's) would take a batch for frames of one and mix them: it gets its pictures one
    by one, and decodes each to [1, 1, H, W, 3].
    """
    of_videos = getattr(vae, "latent_dim", 2) == 3  # VAEs of other packs need not say
    parts = image.split(1) if of_videos else [image]
    back = torch.cat([vae.decode(vae.encode(part)) for part in parts])
    return back.reshape(-1, *back.shape[-3:])
