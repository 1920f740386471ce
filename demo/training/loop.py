"""Data-parallel training on CPU cores: one single-threaded process a core, gradients averaged by gloo.

Several threads in one process stall as soon as another program wants a core; single-threaded processes only slow down.
"""
from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mirror_ops.storage.whole_file import whole_file


def bfloat16() -> contextlib.AbstractContextManager:
    """Autocast to bfloat16 where the processor multiplies it natively (half the time of float32), else nothing."""
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=native)


def parallel(task: Callable, workers: int, *args) -> None:
    """Run task(rank, workers, *args) in `workers` processes that can average their gradients."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_join, (task, workers, Path(folder, "rendezvous").as_uri(), args), nprocs=workers)


def _join(rank, task, workers, rendezvous, args):
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=workers)
    try:
        task(rank, workers, *args)
    finally:
        dist.destroy_process_group()


def fit(modules: dict[str, torch.nn.Module], loss: Callable[[int], torch.Tensor], *, steps: int, lr: float, name: str,
        checkpoint: Path, rank: int, workers: int, origin: str = "", ema: float = .999, weight_decay: float = 1e-2,
        report: Callable[[int], str] | None = None) -> dict[str, dict[str, torch.Tensor]]:
    """Minimise loss(step) over all parameters of `modules` with AdamW: linear warm-up, constant, cosine decay to zero.

    Each rank computes the loss of its own share of the batch; gradients are averaged. Resumes from `checkpoint`, which
    rank 0 writes every two minutes, if that is one of as many steps from the same `origin`, a word for all that the
    training begins with. Returns the exponential moving average of each module's parameters.
    """
    origin = f"{origin} {steps}"
    params = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW([{"params": [p for p in params if p.ndim > 1], "weight_decay": weight_decay},
                                   {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.}],
                                  lr=lr, betas=(.9, .99))
    average = [p.detach().clone() for p in params]
    first, spent = _resume(checkpoint, origin, modules, optimiser, average)
    start = saved = told = time.time()
    running, count = 0., 0
    for step in range(first, steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * schedule(step, steps)
        optimiser.zero_grad(set_to_none=True)
        value = loss(step)
        value.backward()
        _average_gradients(params, workers)
        torch.nn.utils.clip_grad_norm_(params, 1.)
        optimiser.step()
        rate = min(ema, (step + 1) / (step + 10))
        torch._foreach_lerp_(average, [p.detach() for p in params], 1 - rate)
        running, count = running + float(value.detach()), count + 1
        if rank == 0 and (time.time() - told > 20 or step == steps - 1):
            now, done = time.time(), step + 1 - first
            left = (now - start) / done * (steps - step - 1)
            extra = report(step) if report else ""
            print(f"{name} {step + 1}/{steps} loss {running / count:.5f} {extra} {left / 60:.1f} min left", flush=True)
            told, running, count = now, 0., 0
        if rank == 0 and (time.time() - saved > 120 or step == steps - 1):
            _save(checkpoint, origin, modules, optimiser, average, step + 1, spent + time.time() - start)
            saved = time.time()
    return _averaged(modules, average)


def schedule(step: int, steps: int, warmup: int = 100) -> float:
    """Learning-rate factor: linear warm-up, constant to 40 %, then cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    t = max(0., (step / steps - .4) / .6)
    return .5 * (1 + torch.cos(torch.tensor(torch.pi * t)).item())


def _average_gradients(params, workers):
    if workers == 1:
        return
    grads = [p.grad for p in params if p.grad is not None]
    flat = torch._utils._flatten_dense_tensors(grads)
    dist.all_reduce(flat)
    flat /= workers
    torch._foreach_copy_(grads, torch._utils._unflatten_dense_tensors(flat, grads))


def digest(weights: dict[str, torch.Tensor]) -> str:
    """Eight letters for these weights."""
    content = hashlib.sha256()
    for name in sorted(weights):
        content.update(name.encode() + weights[name].detach().float().contiguous().numpy().tobytes())
    return content.hexdigest()[:8]


def _resume(checkpoint, origin, modules, optimiser, average):
    state = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else {}
    if state.get("origin") != origin:
        return 0, 0.
    for key, module in modules.items():
        module.load_state_dict(state["modules"][key])
    optimiser.load_state_dict(state["optimiser"])
    torch._foreach_copy_(average, state["average"])
    return state["step"], state["seconds"]


def _save(checkpoint, origin, modules, optimiser, average, step, seconds):
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    state = {"origin": origin, "modules": {k: m.state_dict() for k, m in modules.items()},
             "optimiser": optimiser.state_dict(), "average": average, "step": step, "seconds": seconds}
    with whole_file(checkpoint) as part:
        torch.save(state, part)


def _averaged(modules, average):
    values = iter(average)
    out = {}
    for key, module in modules.items():
        state = {k: v.detach().clone() for k, v in module.state_dict().items()}
        for k, p in module.named_parameters():
            if p.requires_grad:
                state[k] = next(values).clone()
        out[key] = state
    return out
