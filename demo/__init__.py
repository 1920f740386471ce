"""The embedded world: a small text-to-image model of Stable Diffusion's kind and the renderer that knows the truth."""
