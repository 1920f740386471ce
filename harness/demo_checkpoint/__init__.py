"""A custom node pack for ComfyUIs that this project starts itself: Load Checkpoint can load the demo model's file.

The pack that users install leaves the host's loaders alone, and has the node Mirror Demo Model instead.
"""
import sys

from nodes import CheckpointLoaderSimple

NODE_CLASS_MAPPINGS: dict = {}
CHECKPOINT = "mirror_demo_cartoons.safetensors"
stock = CheckpointLoaderSimple.load_checkpoint


def load_checkpoint(self, ckpt_name: str) -> tuple:
    """As the host's for every file but the demo model's, whose sizes the host does not recognise."""
    if ckpt_name != CHECKPOINT:
        return stock(self, ckpt_name)
    model, notices = (next(module for name, module in sys.modules.items() if name.endswith(end))
                      for end in (".demo.model", ".nodes.host.notices"))
    return model.load(warn=notices.warn)


CheckpointLoaderSimple.load_checkpoint = load_checkpoint
