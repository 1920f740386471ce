"""The only rooms that touch ComfyUI's internals. Everything above sees a denoiser, prompts as tensors, and progress.

`denoiser` runs an algorithm inside the host's own sampling and gives it a `walk`, the loaded model; `gradients` makes a
loaded model differentiable, `conditioning` turns CONDITIONING into tensors and back, `families` says which models can
work, `progress` reports.
"""
