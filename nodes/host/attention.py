"""Reading and replacing attention while the network runs, through the host's hooks, beside those of other packs."""

from collections.abc import Callable, Iterable

import torch
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from comfy.model_patcher import ModelPatcher
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor, dict], Tensor]  # q, k, v, extra_options -> [B, pixels, heads * d]
See = Callable[[Tensor, Tensor, dict], None]
Layer = tuple[str, int, int]  # (part, block, transformer), as the host's attention patches name it
SELF, CROSS = "attn1", "attn2"


def watch_cross_attention(patcher: ModelPatcher, see: See) -> None:
    """Calls `see(q, k, extra_options)` at every cross-attention of a cloned patcher's UNet, on projected q and k.

    Replacements that the model has already (IP-Adapter and the like) go on working. Raises ValueError, naming the
    model, for a network without cross-attention blocks.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor, extra_options: dict, onward: Attention) -> Tensor:
        see(q, k, extra_options)
        return onward(q, k, v, extra_options)

    replace_attention(patcher, CROSS, attend)


def replace_attention(
    patcher: ModelPatcher, kind: str, attend: Callable, layers: Iterable[Layer] | None = None
) -> None:
    """Puts `attend(q, k, v, extra_options, onward)` in place of attention in a cloned patcher's UNet.

    kind: SELF or CROSS; q, k and v are projected, [B, pixels or tokens, heads * d]. `onward(q, k, v, extra_options)` is
    what was there before: another pack's replacement, or `plain_attention`. All layers unless `layers` names some.
    Raises ValueError, naming the model, for a network without such layers.
    """
    every = attention_layers(patcher, kind)
    options = patcher.model_options.get("transformer_options", {})
    replacements = options.get("patches_replace", {}).get(kind, {})
    for layer in every if layers is None else layers:
        earlier = replacements.get(layer, replacements.get(layer[:2]))
        patcher.set_model_patch_replace(_in_place(attend, earlier or plain_attention), kind, *layer)


def _in_place(attend: Callable, onward: Attention) -> Attention:
    """`attend` as the host calls it. A compiled network leaves its graph for it: that could not follow what is kept."""
    return torch.compiler.disable(lambda q, k, v, extra_options: attend(q, k, v, extra_options, onward))


def plain_attention(q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
    """What the host computes where nothing is replaced."""
    precision, heads = extra_options["attn_precision"], extra_options["n_heads"]
    return optimized_attention(q, k, v, heads, attn_precision=precision, transformer_options=extra_options)


def put_in_rows(
    mine: Tensor, out: Tensor, rows: slice, qkv: tuple[Tensor, Tensor, Tensor], extra_options: dict, onward: Attention
) -> Tensor:
    """`out` = onward(*qkv) with `mine` in these rows.

    Where another pack's replacement stands there, what it adds to plain attention is kept (an image prompt's part).
    """
    if onward is not plain_attention:
        mine = mine + out[rows] - plain_attention(*(x[rows] for x in qkv), extra_options)
    out = out.clone()
    out[rows] = mine
    return out


def attention_layers(patcher: ModelPatcher, kind: str = CROSS) -> list[Layer]:
    """The layers of SELF or CROSS attention in the order in which the network runs them.

    Raises ValueError, naming the model, if there are none.
    """
    network = patcher.get_model_object("diffusion_model")
    middle = getattr(network, "middle_block", None)
    parts = {part: getattr(network, f"{part}_blocks", []) for part in ("input", "output")}
    parts = {"input": parts["input"], "middle": [] if middle is None else [middle], "output": parts["output"]}
    layers = [
        (part, i, k)
        for part, blocks in parts.items()
        for i, block in enumerate(blocks)
        for found in block.modules()
        if isinstance(found, SpatialTransformer)
        for k, transformer in enumerate(found.transformer_blocks)
        if getattr(transformer, kind, None) is not None
    ]
    if not layers:
        name, word = type(patcher.model).__name__, "cross-attention" if kind == CROSS else "self-attention"
        raise ValueError(f"{name} has no {word} to read; models of the SD1.x, SD2 and SDXL kind have.")
    return layers


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
