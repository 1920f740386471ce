"""Memory of one gradient through full-size networks, with and without checkpointing, by accounting without a GPU.

SD1.5's and SDXL's UNets are built on torch's meta device, where every operation makes tensors of the right shape and
dtype but no numbers. One forward and one backward pass run as the nodes run them on a GPU: half precision, each layer
with its own copy of its weights, attention that keeps no score matrix (the flash kernel). Every storage is counted from
the operation that makes it until it is freed; the peak of that is what is shown. Not counted: workspaces inside
kernels, the allocator's gaps, and CUDA's own few hundred MB.
"""

from __future__ import annotations

import argparse
import weakref
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.boot import Host, boot

from .table import show, write

GB = 1e9
SD15 = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1, "context_dim": 768,
    "use_spatial_transformer": True, "use_linear_in_transformer": False, "adm_in_channels": None, "num_heads": 8,
    "num_head_channels": -1, "use_temporal_attention": False, "legacy": False,
}
SDXL = {
    **SD15, "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10, "context_dim": 2048,
    "use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": 2816, "num_heads": -1,
    "num_head_channels": 64,
}
# name -> (UNet, side of the latent, the memory in GB that it has to fit into)
SIZES = {"SD1.5, 512 x 512": (SD15, 64, 8.0), "SDXL, 1024 x 1024": (SDXL, 128, 24.0)}


class Account(TorchDispatchMode):
    """Bytes of all storages made while it is open that are still alive: `now`, and at most, `peak`."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in given | self.known:
                self._add(x.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def network_of(config: dict, dtype: torch.dtype) -> torch.nn.Module:
    """The host's UNet with this configuration, without numbers."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    operations = comfy.ops.manual_cast
    return UNetModel(**config, dtype=dtype, device=torch.device("meta"), operations=operations).requires_grad_(False)


def copy_weights_per_call(network: torch.nn.Module) -> None:
    """As `private_weights` does on a GPU, through the host's own weight functions."""
    for layer in network.modules():
        if hasattr(layer, "comfy_cast_weights"):
            layer.weight_function = layer.bias_function = [lambda w: w.detach().clone()]


def flash(func, q, k, v, heads, *args, **kwargs) -> torch.Tensor:
    """Attention [B, N, heads * width] by the kernel that keeps q, k, v, its output, and a number a row."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    return out.transpose(1, 2).flatten(2)


def peak_of(host: Host, network: torch.nn.Module, x: torch.Tensor, text: torch.Tensor, checkpointed: bool) -> int:
    """Bytes alive at most, above the weights, during one gradient with respect to `text`."""
    gradients = host.pack_module("nodes.host.gradients")
    options = {"optimized_attention_override": flash} if x.is_meta else {}
    pooled = network.num_classes is not None
    y = {"y": x.new_zeros(1, network.label_emb[0][0].in_features)} if pooled else {}
    with torch.enable_grad(), Account() as account:
        leaf = text.clone().requires_grad_(True)
        differentiable = gradients.Differentiable(network, checkpointed)
        out = differentiable(lambda: network(x, x.new_ones(1), context=leaf, transformer_options=options, **y))
        torch.autograd.grad(out.float().square().mean(), leaf)
    return account.peak


def measure(host: Host, name: str) -> list[dict]:
    """Rows with and without checkpointing."""
    config, side, limit = SIZES[name]
    network = network_of(config, torch.float16)
    weights = sum(w.numel() * w.element_size() for w in network.parameters()) / GB
    copy_weights_per_call(network)
    x, text = (torch.zeros(shape, device="meta", dtype=torch.float16) for shape in (
        (1, 4, side, side), (1, 77, config["context_dim"])))
    rows = []
    for checkpointed in (True, False):
        peak = peak_of(host, network, x, text, checkpointed) / GB
        rows.append({"network": name, "checkpointing": "on" if checkpointed else "off", "weights_gb": weights,
                     "pass_gb": peak, "total_gb": weights + peak, "limit_gb": limit})
    return rows


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench memory", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    host = boot()
    rows = [row for name in SIZES for row in measure(host, name)]
    show(rows, "one gradient through the network, one picture, half precision, counted in GB")
    write(args.json, {"rows": rows})
    return 0
