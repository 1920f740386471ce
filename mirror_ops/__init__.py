"""The maths of the mirror, on plain tensors. Needs torch, numpy, Pillow, safetensors, pydantic and, for
distillation, spandrel, which ComfyUI has; never imports comfy.

Everything is written on one callable, `denoise(x, sigma, cond) -> denoised`, and one walk over noise levels:

    x         [B, C, H, W]  latent in model space: x0 + sigma * noise (eps- and v-prediction, variance exploding)
                            or (1 - sigma) * x0 + sigma * noise (flow)
    sigma     0-d tensor, > 0
    cond      whatever the network reads; in the rewriters an embedding [B or 1, tokens, width]
    sigmas    [T+1] noise levels in sampling order, sigma_0 > ... > sigma_T >= 0
    latents   [T+1, B, C, H, W] a trajectory in the same order: latents[0] is the noisiest, latents[T] the picture

Where things are, a folder for each idea:

    walks        the grids, one DDIM move, sampling, and the mirror as a value
    inversion    picture to noise: DDIM inversion, refinements, inversions exact by construction
    rewriting    the way back with a prompt rewritten at every step, and the methods that rewrite it
    directions   what to change
    guidance     on predictions: classifier-free, proximal, towards the recording
    attention    prompt-to-prompt, mutual self-attention, cross-attention guidance
    stochastic   a picture as the noises of a stochastic sampler
    regions      where an edit acts
    measure      how good a mirror or an edit is
    distillation an edit taught to a small network
    storage      files that appear whole, and are checked when read
"""
