"""Reading cross-attention while the network runs, without changing what it computes."""

from collections.abc import Callable, Iterator

import torch
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from comfy.model_patcher import ModelPatcher
from torch import Tensor

See = Callable[[Tensor, Tensor, dict], None]


def watch_cross_attention(patcher: ModelPatcher, see: See) -> None:
    """Calls `see(q, k, extra_options)` at every cross-attention of a cloned patcher's UNet, on projected q and k.

    Replacements that the model has already (IP-Adapter and the like) go on working. Raises ValueError, naming the
    model, for a network without cross-attention blocks.
    """
    layers = list(cross_attention_layers(patcher))
    if not layers:
        name = type(patcher.model).__name__
        raise ValueError(f"{name} has no cross-attention to read; models of the SD1.x, SD2 and SDXL kind have.")
    options = patcher.model_options.get("transformer_options", {})
    replacements = options.get("patches_replace", {}).get("attn2", {})
    for layer in layers:
        earlier = replacements.get(layer, replacements.get(layer[:2]))
        patcher.set_model_attn2_replace(_watched(see, earlier), *layer)


def cross_attention_layers(patcher: ModelPatcher) -> Iterator[tuple[str, int, int]]:
    """(part, block, transformer) of each cross-attention, as the host's attention patches name them."""
    network = patcher.get_model_object("diffusion_model")
    middle = getattr(network, "middle_block", None)
    parts = {"middle": [] if middle is None else [middle]}
    parts |= {part: getattr(network, f"{part}_blocks", []) for part in ("input", "output")}
    for part, blocks in parts.items():
        for i, block in enumerate(blocks):
            for layer in block.modules():
                if isinstance(layer, SpatialTransformer):
                    crossing = [getattr(t, "attn2", None) is not None for t in layer.transformer_blocks]
                    yield from ((part, i, k) for k, crosses in enumerate(crossing) if crosses)


def _watched(see: See, earlier: Callable | None) -> Callable:
    def attend(q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        see(q, k, extra_options)
        if earlier is not None:
            return earlier(q, k, v, extra_options)
        precision = extra_options["attn_precision"]
        heads = extra_options["n_heads"]
        return optimized_attention(q, k, v, heads, attn_precision=precision, transformer_options=extra_options)

    return attend


def positive_rows(extra_options: dict, rows: int) -> list[int]:
    """Which of `rows` of the network's batch belong to the positive prompt."""
    sides = extra_options["cond_or_uncond"]
    each = rows // len(sides)
    return [i for i in range(rows) if sides[i // each] == 0]


def probabilities(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """[B, heads, pixels, tokens] softmax(q k^T / sqrt(d)), float32, from projected q [B, pixels, heads * d] and k."""
    q, k = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1)


class WordMaps:
    """Gathers, during one evaluation, how much attention each word draws in the positive prompt.

    `words` are lists of token positions. Layers whose longer side exceeds `largest` are passed over: their maps take
    the most memory and say the least.
    """

    def __init__(self, words: list[list[int]], largest: int):
        self.words, self.largest = words, largest
        self._layers: list[Tensor] = []

    def __call__(self, q: Tensor, k: Tensor, extra_options: dict) -> None:
        height, width = extra_options["activations_shape"][-2:]
        if max(height, width) > self.largest:
            return
        rows = positive_rows(extra_options, len(q))
        maps = probabilities(q[rows], k[rows], extra_options["n_heads"]).mean(dim=1)  # [B, pixels, tokens]
        drawn = torch.stack([maps[..., tokens].sum(dim=-1) for tokens in self.words], dim=1)
        self._layers.append(drawn.unflatten(-1, (height, width)))

    def take(self, size: tuple[int, int]) -> Tensor:
        """[B, words, *size] the mean over layers since the last call. ValueError if every layer was passed over."""
        if not self._layers:
            raise ValueError(f"Every cross-attention layer is larger than {self.largest}. Raise `largest`.")
        layers, self._layers = self._layers, []
        resized = [torch.nn.functional.interpolate(maps, size=size, mode="bilinear") for maps in layers]
        return torch.stack(resized).mean(dim=0)
