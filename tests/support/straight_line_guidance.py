"""Cross-attention guidance as straight-line code in the papers' own variance-preserving form, for comparison."""

import torch

from .tiny import unet

PAPER, CODE = "one latent (paper)", "two latents (official code)"


class Network:
    """The tiny network by itself: no sampler, no patches, weights outside inference mode."""

    def __init__(self, make=unet, dtype=torch.float32):
        with torch.inference_mode(False):
            self.model = make().model
            self.model.diffusion_model.to(dtype).requires_grad_(False)  # older hosts leave that to their users
        self.hooks, self.maps, self.text = [], [], []
        for part in self.model.diffusion_model.modules():
            if hasattr(part, "attn2"):
                self._watch(part.attn2)

    def _watch(self, layer):
        found = {}
        layer.to_q.register_forward_hook(lambda m, a, out: found.update(q=out))
        layer.to_v.register_forward_hook(lambda m, a, out: self.text.append(out))

        def arrived(m, a, out):
            q, k = (x.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for x in (found["q"], out))
            self.maps.append(torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1).flatten(0, 1))
            self.text.append(out)

        layer.to_k.register_forward_hook(arrived)

    def __call__(self, x, sigma, text):
        """(noise, [attention maps [B * heads, pixels, tokens]]) at the variance-preserving latent x of level sigma."""
        self.maps, self.text = [], []
        label = self.model.model_sampling.timestep(sigma.float()).expand(len(x))
        return self.model.diffusion_model(x, label, context=text.expand(len(x), -1, -1)), self.maps


def loss_of(maps, reference):
    """pix2pix-zero's: sum over pixels and tokens, mean over batch x heads of the doubled batch, sum over layers."""
    return sum(((m - r) ** 2).sum((1, 2)).mean(0) for m, r in zip(maps, reference, strict=True))


def ddim(x, e, level, following):
    a, b = 1 / (1 + level**2), 1 / (1 + following**2)
    return b.sqrt() * (x - (1 - a).sqrt() * e) / a.sqrt() + (1 - b).sqrt() * e


def straight_line(network, mirror, edit, empty, latents, amount, cfg, cycle=False, strength=1.0):
    """The official loop: reference maps, gradient on the doubled latent, prediction, DDIM move."""
    sigmas, x = mirror.sigmas, mirror.latents[0] / (1 + mirror.sigmas[0] ** 2).sqrt()
    weights = {2: 0.9, 3: 0.72, 4: 0.576, 5: 0.4608}  # of twelve steps

    def down(xin, text, reference, step):
        leaf = xin.detach().requires_grad_(True)
        maps = network(leaf, sigma, text)[1]
        if latents == PAPER:  # the guided half alone, with the weight that it has in the doubled batch
            heads = len(maps[0]) // 2
            maps = [torch.cat([r[:heads], m[heads:]]) for m, r in zip(maps, reference, strict=True)]
        (gradient,) = torch.autograd.grad(loss_of(maps, reference), leaf)
        return xin - step * gradient

    for i, sigma in enumerate(sigmas[:-1]):
        kept = torch.cat([empty, mirror.embeddings[i]])
        recorded = mirror.latents[i] / (1 + sigma**2).sqrt()
        with torch.no_grad():
            reference = [m.clone() for m in network(torch.cat([recorded] * 2), sigma, kept)[1]]
        xin = torch.cat([x, x])
        change = edit - mirror.source
        text = torch.cat([empty, mirror.embeddings[i] + strength * change])
        if cycle and i in weights:
            less = torch.cat([empty, mirror.embeddings[i] + (strength - 1) * change])
            xin = down(xin, less, reference, amount * weights[i])
            xin = torch.cat([xin[1:]] * 2) if latents == PAPER else xin
        xin = down(xin, text, reference, amount)
        if latents == PAPER:
            xin = torch.cat([xin[1:]] * 2)
        with torch.no_grad():
            noise = network(xin, sigma, text)[0]
        x = ddim(xin[:1], noise[:1] + cfg * (noise[1:] - noise[:1]), sigma, sigmas[i + 1])
    return x * (1 + sigmas[-1] ** 2).sqrt()
