"""Attention control as straight-line code, for comparison: source and edit in one batch, attention written out.

`walk` takes the tiny model's own layers and nothing else of the host's sampling or of the pack: the four rows [source
without words, edit without words, source, edit] go through the network together, as in the papers' codes, and every
attention asks `control` for its probabilities and values.
"""

from collections.abc import Callable

import torch
from torch import Tensor

SELF, CROSS = "attn1", "attn2"
Control = Callable[[int, str, int, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def walk(
    model, mirror, target: Tensor, empty: Tensor, cfg: float, control: Control, *,
    source_empty: Tensor | None = None, guide: Callable | None = None, after: Callable | None = None,
) -> Tensor:
    """[B, C, H, W] the edit in model space, sampled by Euler beside the mirror's recorded latents.

    control(step, kind, layer, q, k, v, p) -> (p, v): q, k, v [4 B, heads, tokens, d], p their probabilities; layer
    counts those of a kind in the order in which they run. target, empty [1, tokens, width]; source_empty: the source's
    negative, if it is another than `empty`. guide(cond, uncond) -> denoised, by default at `cfg`;
    after(step, x, recorded) -> x corrects a step.
    """
    network, x = model.model.diffusion_model, mirror.latents[0]
    layers = {kind: [m for name, m in network.named_modules() if name.endswith(kind)] for kind in (SELF, CROSS)}
    guide = guide or (lambda cond, uncond: uncond + cfg * (cond - uncond))
    state = {"step": 0}
    for kind, modules in layers.items():
        for n, module in enumerate(modules):
            module.forward = _attention(module, state, kind, n, control)
    try:
        for i in range(mirror.steps):
            state["step"], batch = i, x.shape[0]
            sigma, following = mirror.sigmas[i], mirror.sigmas[i + 1]
            texts = [empty if source_empty is None else source_empty, empty, mirror.embeddings[i], target]
            rows = torch.cat([mirror.latents[i], x, mirror.latents[i], x])
            context = torch.cat([text.expand(batch, -1, -1) for text in texts])
            with torch.no_grad():
                denoised = model.model.apply_model(rows, sigma.expand(4 * batch), c_crossattn=context)
            _, uncond, _, cond = denoised.chunk(4)
            guided = guide(cond, uncond)
            x = guided + following / sigma * (x - guided)
            x = x if after is None else after(i, x, mirror.latents[i + 1])
    finally:
        for module in (module for modules in layers.values() for module in modules):
            del module.forward
    return x


def _attention(module, state: dict, kind: str, n: int, control: Control) -> Callable:
    def forward(x, context=None, value=None, mask=None, transformer_options=None):
        context = x if context is None else context
        q, k, v = module.to_q(x), module.to_k(context), module.to_v(context)
        q, k, v = (t.unflatten(-1, (module.heads, -1)).transpose(1, 2) for t in (q, k, v))
        p = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
        p, v = control(state["step"], kind, n, q, k, v, p)
        return module.to_out((p @ v).transpose(1, 2).flatten(2))

    return forward
