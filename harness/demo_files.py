"""What templates for a user's own files find in the ComfyUIs that this project starts: a checkpoint and a picture."""
import shutil
from pathlib import Path

from .environment import ROOT

LOADER = Path(__file__).parent / "demo_checkpoint"      # lets Load Checkpoint load it
LOADER_NAME = "mirrordiffusion_demo_checkpoint"


def provide(base: Path) -> None:
    """Put the demo model's checkpoint and a scene of its world into a ComfyUI's base folder."""
    # here, because Pillow is in the environment and not in the Python that makes it
    from demo.graphs.parts import CHECKPOINT, EXAMPLE, SEED
    from demo.render import render
    from demo.scene import scene
    weights = ROOT / "demo" / "weights" / "embedded_world.safetensors"
    checkpoint = base / "models" / "checkpoints" / CHECKPOINT
    if not checkpoint.exists() or checkpoint.stat().st_mtime < weights.stat().st_mtime:
        shutil.copyfile(weights, checkpoint)
    render(scene(SEED).with_(species="fox")).save(base / "input" / EXAMPLE)
