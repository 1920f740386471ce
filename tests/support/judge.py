"""A tiny CLIP_VISION of the host's own class with random weights, whose embeddings are as wide as tiny.clip's."""

import json
import tempfile
from pathlib import Path

from . import tiny

EYE = {"hidden_size": 32, "image_size": 32, "patch_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4,
       "intermediate_size": 64, "hidden_act": "quick_gelu", "num_channels": 3, "projection_dim": tiny.WIDTH,
       "layer_norm_eps": 1e-5, "model_type": "clip_vision_model"}


def eye(seed: int = 7):
    """CLIP_VISION, two layers."""
    from comfy.clip_vision import ClipVisionModel
    with tempfile.TemporaryDirectory() as folder:  # older hosts read the configuration from a file only
        file = Path(folder) / "eye.json"
        file.write_text(json.dumps(EYE))
        made = ClipVisionModel(str(file))
    tiny.fill(made.model, seed)
    return made
