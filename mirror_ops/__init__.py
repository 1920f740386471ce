"""The maths of the mirror, on plain tensors. Needs torch, numpy, Pillow and safetensors; never imports comfy.

Everything is written on one callable, `denoise(x, sigma, cond) -> denoised`, and one walk over noise levels:

    x         [B, C, H, W]  latent in model space: x0 + sigma * noise (eps- and v-prediction, variance exploding)
                            or (1 - sigma) * x0 + sigma * noise (flow)
    sigma     0-d tensor, > 0
    cond      whatever the network reads; in the rewriters an embedding [B or 1, tokens, width]
    sigmas    [T+1] noise levels in sampling order, sigma_0 > ... > sigma_T >= 0
    latents   [T+1, B, C, H, W] a trajectory in the same order: latents[0] is the noisiest, latents[T] the picture

Where things are: `schedules` the grids, `ddim` one move, `guidance` classifier-free guidance, `invert` picture to
noise, `redescribe` the way back with a rewritten prompt, `rewriters` the methods that rewrite it, `sample` the edit,
`direction` what to change, `trajectory` the result as a value. A new rewriter is one class in `rewriters`; a new way
to invert is one function that returns latents.
"""
