"""Values that the methods have to reproduce, by straight-line code in float64: `python tests/support/golden.py` writes
them to tests/golden/values.safetensors (any Python with torch and safetensors).

Nothing here comes from the pack. Where a paper is written in variance-preserving latents z = x / sqrt(1 + sigma^2) with
alpha_bar = 1 / (1 + sigma^2), so is its code here. `network(x, sigma, text)` stands for the denoiser; pictures, texts
and grids are short and the same for all.
"""

import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

FILE = Path(__file__).parents[1] / "golden" / "values.safetensors"
BATCH, HEIGHT, WIDTH, TOKENS, NUMBERS = 2, 8, 6, 3, 5
SIGMAS = torch.tensor([14.6, 8.0, 4.0, 2.0, 1.0, 0.4, 0.0], dtype=torch.float64)
FLOW = torch.tensor([0.95, 0.8, 0.6, 0.4, 0.2, 0.0], dtype=torch.float64)
STEPS, CFG = len(SIGMAS) - 1, 3.0


def drawn(seed: int, *shape: int, dtype=torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


PICTURE = drawn(1, BATCH, 4, HEIGHT, WIDTH)
SOURCE, TARGET, EMPTY = (drawn(seed, 1, TOKENS, NUMBERS) for seed in (2, 3, 4))
CENTRES, MIX = drawn(5, 3, 4), drawn(6, NUMBERS, 4)
# Where the text acts: around a place, less and less
PLACE = 0.01 + torch.exp(-((torch.arange(HEIGHT)[:, None] - 4) ** 2 + (torch.arange(WIDTH) - 2) ** 2).double() / 4)


def network(x: Tensor, sigma: Tensor, text: Tensor, flow: bool = False) -> Tensor:
    """E[x0 | x] of pixels that are one of three Gaussians, deviation 0.4, around centres that the text moves."""
    keeps = 1 - sigma if flow else torch.ones_like(sigma)
    moved = (text.mean(dim=1) @ MIX.to(text))[:, :, None, None] * PLACE.to(x)
    centres = CENTRES.to(x)[:, None, :, None, None] + moved
    away = x - keeps * centres
    spread = (0.4 * keeps) ** 2 + sigma**2
    likely = torch.softmax(-away.square().sum(dim=2, keepdim=True) / (2 * spread), dim=0)
    return (likely * (centres + keeps * 0.16 / spread * away)).sum(dim=0)


def guided(x: Tensor, sigma: Tensor, text: Tensor, negative: Tensor = EMPTY, cfg: float = CFG) -> Tensor:
    cond, uncond = network(x, sigma, text), network(x, sigma, negative)
    return uncond + cfg * (cond - uncond)


def alpha_bar(sigma: Tensor) -> Tensor:
    return 1 / (1 + sigma**2)


def noise_at(z: Tensor, label: Tensor, text: Tensor, denoise=network) -> Tensor:
    """eps(z, label): the variance-preserving latent as it is, under the label's level."""
    x = z * (1 + label**2).sqrt()
    return (x - denoise(x, label, text)) / label


def ddim(z: Tensor, e: Tensor, sigma: Tensor, other: Tensor) -> Tensor:
    a, b = alpha_bar(sigma), alpha_bar(other)
    return b.sqrt() * (z - (1 - a).sqrt() * e) / a.sqrt() + (1 - b).sqrt() * e


def inversions() -> dict[str, Tensor]:
    """DDIM inversion (Song et al. 2021), labelled as by Mokady et al. and as by Parmar et al., the latter's noise
    regularised; and the implicit step by three fixed-point iterations."""
    found = {}
    for name in ("target", "current", "regularised"):
        z = PICTURE
        shifts = torch.Generator().manual_seed(8)
        for above, below in reversed(list(zip(SIGMAS, SIGMAS[1:], strict=False))):
            e = noise_at(z, max(below, torch.tensor(0.03, dtype=below.dtype)) if name == "current" else above, SOURCE)
            z = ddim(z, nudged(e, shifts) if name == "regularised" else e, below, above)
        found[name] = z * (1 + SIGMAS[0] ** 2).sqrt()
    x = PICTURE
    for above, below in reversed(list(zip(SIGMAS, SIGMAS[1:], strict=False))):
        up = ddim(x / (1 + below**2).sqrt(), noise_at(x / (1 + below**2).sqrt(), above, SOURCE), below, above)
        up = up * (1 + above**2).sqrt()
        for _ in range(3):
            up = x + (above - below) * (up - network(up, above, SOURCE)) / above
        x = up
    return {f"inversion.{name}": value for name, value in {**found, "fixed point": x}.items()}


def nudged(e: Tensor, shifts: torch.Generator) -> Tensor:
    """pix2pix-zero's noise regularisation by autograd: 5 rounds of 5 descents on the pairs' loss and one on the KL."""
    for _ in range(5):
        for _ in range(5):
            drawn = torch.randint(1, min(HEIGHT, WIDTH) // 2, (4,), generator=shifts).tolist()     # one size: 6 <= 8
            rolled = [(channel, shift, axis) for channel, shift in enumerate(drawn) for axis in (1, 2)]
            e = descended(e, 20 / 5, lambda n, rolled=rolled: sum(
                (n[:, c] * n[:, c].roll(shift, axis)).mean(dim=(1, 2)) ** 2 for c, shift, axis in rolled))
        e = descended(e, 20, lambda n: n.var(dim=(1, 2, 3)) + n.mean(dim=(1, 2, 3)) ** 2 - 1 - (
            n.var(dim=(1, 2, 3)) + 1e-7).log())
    return e


def descended(x: Tensor, rate: float, loss) -> Tensor:
    leaf = x.detach().requires_grad_(True)
    loss(leaf).sum().backward()
    return x - rate * leaf.grad


def recorded() -> list[Tensor]:
    """The variance-preserving latents of a plain inversion, noisiest first."""
    z = [PICTURE]
    for above, below in reversed(list(zip(SIGMAS, SIGMAS[1:], strict=False))):
        z.append(ddim(z[-1], noise_at(z[-1], above, SOURCE), below, above))
    return z[::-1]


def rewritten(side: str) -> dict[str, Tensor]:
    """The official loop of prompt redescription (`positive`, MirrorDiffusion) and of null-text inversion (`negative`):
    torch's own Adam, one picture at a time, each with its own early stop."""
    texts, ends = [], []
    for b in range(BATCH):
        wanted = [z[b : b + 1] for z in recorded()]
        text, z = SOURCE if side == "positive" else EMPTY, wanted[0]
        for i, (sigma, following) in enumerate(zip(SIGMAS, SIGMAS[1:], strict=False)):
            text = text.detach().clone().requires_grad_(True)
            optimiser = torch.optim.Adam([text], lr=1e-2 * (1 - i / STEPS / 2))
            for _ in range(4):
                loss = (step_of(side, z, sigma, following, text) - wanted[i + 1]).square().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                if loss.item() < 0.02 * (1 + 100 * i / STEPS):
                    break
            z = step_of(side, z, sigma, following, text).detach()
            texts.append(text.detach())
        ends.append(z)
    in_order = [torch.cat([texts[i], texts[STEPS + i]]) for i in range(STEPS)]
    return {f"rewriting.{side}.prompts": torch.stack(in_order), f"rewriting.{side}.picture": torch.cat(ends)}


def step_of(side: str, z: Tensor, sigma: Tensor, following: Tensor, text: Tensor) -> Tensor:
    cond, uncond = (text, EMPTY) if side == "positive" else (SOURCE, text)
    return ddim(z, noise_at(z, sigma, cond, lambda x, s, t: guided(x, s, t, uncond)), sigma, following)


def edict() -> dict[str, Tensor]:
    """EDICT (Wallace et al. 2023), eq. 14 and 15, p = 0.93: the pair at the top, and the edit by another prompt."""
    p, x, y = 0.93, PICTURE, PICTURE
    for i in reversed(range(STEPS)):
        level, below = SIGMAS[i], SIGMAS[i + 1]
        y = (y - (1 - p) * x) / p
        x = (x - (1 - p) * y) / p
        for turn in ((1, 0) if i % 2 == 0 else (0, 1)):
            mine, its = (x, y) if turn == 0 else (y, x)
            mine = undone(mine, noise_at(its, level, SOURCE), level, below)
            x, y = (mine, y) if turn == 0 else (x, mine)
    top = torch.stack([x, y]) * (1 + SIGMAS[0] ** 2).sqrt()
    for i in range(STEPS):
        level, below = SIGMAS[i], SIGMAS[i + 1]
        for turn in ((0, 1) if i % 2 == 0 else (1, 0)):
            mine, its = (x, y) if turn == 0 else (y, x)
            mine = ddim(mine, noise_at(its, level, TARGET), level, below)
            x, y = (mine, y) if turn == 0 else (x, mine)
        x = p * x + (1 - p) * y
        y = p * y + (1 - p) * x
    return {"edict.noise": top, "edict.edit": x}


def undone(z: Tensor, e: Tensor, sigma: Tensor, below: Tensor) -> Tensor:
    """The latent at sigma that ddim(., e, sigma, below) takes to z."""
    a, b = alpha_bar(sigma), alpha_bar(below)
    return a.sqrt() * (z - (1 - b).sqrt() * e) / b.sqrt() + (1 - a).sqrt() * e


def bdia() -> dict[str, Tensor]:
    """BDIA (Zhang et al. 2024), eq. 18, gamma = 0.96: z_next = ddim(z -> next) + gamma (z_last - ddim(z -> last))."""
    gamma, z = 0.96, [PICTURE]
    z.append(ddim(PICTURE, noise_at(PICTURE, SIGMAS[-2], SOURCE), SIGMAS[-1], SIGMAS[-2]))
    for i in reversed(range(1, STEPS)):
        e = noise_at(z[-1], SIGMAS[i], SOURCE)
        missed = z[-2] - ddim(z[-1], e, SIGMAS[i], SIGMAS[i + 1])
        z.append(ddim(z[-1], e, SIGMAS[i], SIGMAS[i - 1]) + missed / gamma)
    top, last, here = z[-1], z[-1], z[-2]
    for i in range(1, STEPS):
        e = noise_at(here, SIGMAS[i], TARGET)
        missed = last - ddim(here, e, SIGMAS[i], SIGMAS[i - 1])
        last, here = here, ddim(here, e, SIGMAS[i], SIGMAS[i + 1]) + gamma * missed
    return {"bdia.noise": top * (1 + SIGMAS[0] ** 2).sqrt(), "bdia.edit": here}


def stochastic() -> dict[str, Tensor]:
    """The noises of the DPM-encoder (Wu & De la Torre 2023, algorithm 1) and of edit-friendly inversion
    (Huberman-Spiegelglas et al. 2024), and the edits by them."""
    found = {}
    for name, eta in (("dpm-encoder", 0.3), ("edit-friendly", 1.0)):
        generators = [torch.Generator().manual_seed(7 + b) for b in range(BATCH)]

        def noise(generators=generators):
            return torch.stack([torch.randn(PICTURE.shape[1:], generator=g) for g in generators]).double()

        a, n = alpha_bar(SIGMAS[0]), noise()
        z = edited = a.sqrt() * PICTURE + (1 - a).sqrt() * n
        noises = []
        for i, (sigma, following) in enumerate(zip(SIGMAS, SIGMAS[1:], strict=False)):
            a, b = alpha_bar(sigma), alpha_bar(following)
            up = eta * ((1 - b) / (1 - a)).sqrt() * (1 - a / b).sqrt()
            carried = (1 - b - up**2).sqrt()
            if i == STEPS - 1:
                wanted, up = PICTURE, torch.ones_like(up)
            elif name == "edit-friendly":
                wanted = b.sqrt() * PICTURE + (1 - b).sqrt() * noise()
            else:
                wanted = b.sqrt() * PICTURE + carried * (z - a.sqrt() * PICTURE) / (1 - a).sqrt() + up * noise()
            here, there = (noise_at(one, sigma, text) for one, text in ((z, SOURCE), (edited, TARGET)))
            means = [b.sqrt() * (one - (1 - a).sqrt() * e) / a.sqrt() + carried * e
                     for one, e in ((z, here), (edited, there))]
            noises.append((wanted - means[0]) / up)
            z, edited = wanted, means[1] + up * noises[-1]
        found |= {f"{name}.noises": torch.stack(noises), f"{name}.edit": edited}
    return found


def shared_noise() -> dict[str, Tensor]:
    """FlowEdit (Kulikov et al. 2024, algorithm 1) with two opposite noises a step, and InfEdit's virtual inversion
    (Xu et al. 2023, algorithm 1)."""
    generators = [torch.Generator().manual_seed(11 + b) for b in range(BATCH)]

    def noise():
        return torch.stack([torch.randn(PICTURE.shape[1:], generator=g, dtype=torch.float64) for g in generators])

    edit = PICTURE
    for t, following in zip(FLOW, FLOW[1:], strict=False):
        n, speed = noise(), 0
        for sign in (1, -1):
            z = (1 - t) * PICTURE + t * sign * n
            z_edit = edit + z - PICTURE
            v, v_edit = ((x - network(x, t, text, flow=True)) / t for x, text in ((z, SOURCE), (z_edit, TARGET)))
            speed = speed + (v_edit - v) / 2
        edit = edit + (following - t) * speed
    found = {"shared noise.flow": edit}
    generators = [torch.Generator().manual_seed(11 + b) for b in range(BATCH)]
    change = 0 * PICTURE
    for sigma in SIGMAS[:-1]:
        x = PICTURE + sigma * noise()
        change = guided(x + change, sigma, TARGET) - guided(x, sigma, SOURCE)
    return {**found, "shared noise.jump": PICTURE + change}


def proximal() -> dict[str, Tensor]:
    """ProxEdit (Han et al. 2024, algorithm 1) at one level: both maps, thresholds by quantile of each picture, of the
    published batch and fixed; the mask, and both pulls towards the picture."""
    sigma, following = SIGMAS[2], SIGMAS[3]
    x = PICTURE + sigma * drawn(20, *PICTURE.shape)
    kept = PICTURE + following * drawn(21, *PICTURE.shape)
    cond, uncond = network(x, sigma, TARGET), network(x, sigma, SOURCE)
    e, e_u = (x - cond) / sigma, (x - uncond) / sigma
    d = e - e_u
    each = torch.stack([sorted_quantile(one, 0.7) for one in d])[:, None, None, None]
    batch = sorted_quantile(torch.stack([0 * d, d]), 0.7)

    def soft(tau):
        return torch.where(d > tau, d - tau, torch.where(d < -tau, d + tau, torch.zeros_like(d)))

    def prediction(kept_part):
        return x - sigma * (e_u + CFG * kept_part)

    where = torch.zeros_like(d)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            around = d[:, :, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            where[:, :, row, column] = (around.abs() > 2 * each).flatten(2).any(dim=2).double()
    guess = prediction(soft(each))
    stepped = x + (following - sigma) * (x - guess) / sigma
    return {
        "proximal.soft": guess, "proximal.hard": prediction(torch.where(d.abs() > each, d, 0 * d)),
        "proximal.published": prediction(soft(batch)), "proximal.fixed": prediction(soft(0.05)),
        "proximal.mask": where, "proximal.inversion": stepped - 0.4 * (stepped - kept) * (1 - where),
        "proximal.reconstruction": stepped - 0.4 * (guess - PICTURE) * (1 - where),
    }


def sorted_quantile(x: Tensor, q: float) -> Tensor:
    ordered = x.abs().flatten().sort().values
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    return ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def masks() -> dict[str, Tensor]:
    """The edit mask: predictions compared on recorded latents from 0.04 of the walk on, every 0.12 of it, and Otsu's
    threshold of the change's logarithm, found by trying every split. The mask of an edit so far, and of two pictures.
    """
    levels = torch.linspace(8, 0, 26, dtype=torch.float64)
    steps = range(1, 25, 3)
    seen = [(PICTURE + levels[i] * drawn(30, *PICTURE.shape), levels[i]) for i in steps]
    before, after = ([network(x, s, text) for x, s in seen] for text in (SOURCE, TARGET))
    first, edit, soft = [], [], []
    moved = 0.2 * (network(PICTURE, SIGMAS[3], TARGET) - network(PICTURE, SIGMAS[3], SOURCE))
    one, other = photos()
    for b in range(BATCH):
        square = sum(((after[k][b] - before[k][b]) ** 2).sum(dim=0) for k in range(len(steps))) / 4 / len(steps)
        size = sum(before[k][b].abs().mean() for k in range(len(steps))) / len(steps)
        first.append(otsu_ramp(smoothed((square.sqrt() + 1e-5 * size).log()), -0.02, 0.28))
        change = (moved[b] ** 2).mean(dim=0).sqrt() + 1e-5 * PICTURE[b].abs().mean()
        edit.append(otsu_ramp(smoothed(change.log()), -0.1, 0.2))
        change = box(((one[b] - other[b]) ** 2).mean(dim=0).sqrt(), 2) + 1e-3
        soft.append(box(widened(otsu_ramp(change.sqrt(), 0, 1e-6), 2), 2))
    turns = torch.tensor([0.7 * 20, 0.8 * 20], dtype=torch.float64)     # of a walk of 20: another rule from here on
    return {"mask.first": torch.stack(first), "mask.edit": torch.stack(edit), "mask.pictures": torch.stack(soft),
            "mask.turns": turns}


def photos() -> tuple[Tensor, Tensor]:
    """Two pictures [B, 3, 24, 20] in [0, 1] that differ in a block."""
    one = drawn(31, BATCH, 3, 24, 20).sigmoid()
    other = one.clone()
    other[:, :, 9:14, 8:12] = 1 - other[:, :, 9:14, 8:12]
    return one, other


def otsu_ramp(level: Tensor, low: float, high: float) -> Tensor:
    values, best = sorted(level.flatten().tolist()), (-1.0, 0.0, 0.0)
    for k in range(1, len(values)):
        left, right = values[:k], values[k:]
        apart = sum(right) / len(right) - sum(left) / len(left)
        between = len(left) * len(right) / len(values) ** 2 * apart**2
        best = max(best, (between, (left[-1] + right[0]) / 2, apart))
    return (((level - best[1]) / best[2] - low) / (high - low)).clamp(0, 1)


def box(values: Tensor, by: int) -> Tensor:
    """The mean of each cell's neighbourhood, the edge repeated outwards."""
    rows, columns = ([min(max(k, 0), n - 1) for k in range(-by, n + by)] for n in values.shape)
    wide = values[rows][:, columns]
    return torch.stack([torch.stack([wide[i : i + 2 * by + 1, j : j + 2 * by + 1].mean()
                                     for j in range(values.shape[1])]) for i in range(values.shape[0])])


def widened(values: Tensor, by: int) -> Tensor:
    return torch.stack([torch.stack([values[max(i - by, 0) : i + by + 1, max(j - by, 0) : j + by + 1].max()
                                     for j in range(values.shape[1])]) for i in range(values.shape[0])])


def smoothed(level: Tensor) -> Tensor:
    return 0.5 * level + 0.5 * box(level, 1)


def directions() -> dict[str, Tensor]:
    """The mean of one side's sentences less that of the other's (Parmar et al. 2023), the amounts of MirrorDiffusion's
    ramp (0.65 + 1.2 progress until 2/3), guidance in the first part only, and the arc between two prompts."""
    sides = {name: drawn(seed, count, TOKENS, NUMBERS) for name, seed, count in (("before", 40, 5), ("after", 41, 4))}
    amounts = [0.65 + 1.2 * i / STEPS if i / STEPS < 2 / 3 else 0.65 for i in range(STEPS)]
    start, end = SOURCE.flatten(), TARGET.flatten()
    angle = math.acos(float(start @ end / start.norm() / end.norm()))
    arc = (math.sin(0.7 * angle) * start + math.sin(0.3 * angle) * end) / math.sin(angle)
    return {
        "direction.delta": sides["after"].mean(dim=0, keepdim=True) - sides["before"].mean(dim=0, keepdim=True),
        "direction.amounts": torch.tensor(amounts, dtype=torch.float64),
        "direction.cfgs": torch.tensor([CFG, CFG, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64),      # 0.4 of six steps
        "direction.arc": arc.reshape(1, TOKENS, NUMBERS),
    }


def values() -> dict[str, Tensor]:
    """All of them, by name."""
    parts = (inversions(), rewritten("positive"), rewritten("negative"), edict(), bdia(), stochastic(), shared_noise(),
             proximal(), masks(), directions())
    return {name: value.contiguous() for part in parts for name, value in part.items()}


if __name__ == "__main__":
    save_file(values(), FILE)
    print(f"wrote {FILE}")
