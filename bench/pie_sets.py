"""FID and KID: how near the edited pictures of a method, as a set, are to real pictures of the edits' target domain.

As CycleDiffusion's evaluator computes them (Wu & De la Torre, ICCV 2023), which is clean-fid (Parmar, Zhang & Zhu, CVPR
2022): the 2048 features of the Inception network of 2015, FID raw, KID x 1000 over 100 random subsets of at most 1000
pictures. Both fall with the number of pictures, FID in the mean too: compare only what is made of equally many. The
network is a file of the folder given as --weights, nothing is downloaded; the packages are torchmetrics and
torch-fidelity:

    pt_inception-2015-12-05-6726825d.pth        pytorch-fid's; torch-fidelity's weights-inception-... is the same file

Bytes are what pictures are saved as and nothing else is rounded, as in clean-fid. Its subsets are drawn by NumPy and
without a seed, these by torch with one.
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .fingerprint import stamp
from .pie_metrics import INSTALL, installed

INCEPTION, SAME = "pt_inception-2015-12-05-6726825d.pth", "*inception-2015-12-05-6726825d.pth"
SIDE, BATCH = 299, 16
SUBSETS, MOST, SEED = 100, 1000, 1234
PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def inception(file: Path) -> torch.nn.Module:
    """Pictures [B, 3, 299, 299] in [-1, 1] to features [B, 2048].

    The parts of torch-fidelity's network, which stand in the order they run in, class scores last. Its own forward
    takes only bytes, to which the resized picture would have to be rounded. Raises ValueError if the file is broken or
    holds more than tensors: the package itself would run what it holds.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    try:
        torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file} is no file of weights, or is cut short: fetch it anew.") from error
    network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(file))
    *parts, _ = network.children()
    return torch.nn.Sequential(*parts, torch.nn.Flatten())


def prepared(path: Path) -> Tensor:
    """[3, 299, 299] in [-1, 1] of a picture in a file, each channel resized in floats and antialiased."""
    with Image.open(path) as image:
        channels = image.convert("RGB").split()
    resized = [channel.convert("F").resize((SIDE, SIDE), Image.Resampling.BICUBIC) for channel in channels]
    return (torch.from_numpy(np.stack([np.asarray(channel) for channel in resized])).clamp(0, 255) - 128) / 128


class Sets:
    """`fid` and `kid` of pictures in files against the real ones, which are looked at only once."""

    def __init__(self, network: torch.nn.Module, reference: list[Path]):
        self.network, self.reference = network, reference
        self.real: Tensor | None = None

    def identity(self) -> str:
        """Changes with the real pictures."""
        return stamp(self.reference)

    @torch.inference_mode()
    def features(self, paths: list[Path], what: str) -> Tensor:
        """[N, C] in double precision."""
        found = []
        for k in range(0, len(paths), BATCH):
            print(f"\r\033[K{what}, fid and kid: {k}/{len(paths)}", end="", flush=True)
            found.append(self.network(torch.stack([prepared(path) for path in paths[k:k + BATCH]])).double())
        return torch.cat(found)

    def __call__(self, paths: list[Path], what: str) -> dict[str, float]:
        if self.real is None:
            self.real = self.features(self.reference, "reference")
        features = self.features(paths, what)
        return {"fid": fid(features, self.real), "kid": kid(features, self.real)}


def given(width: int) -> torch.nn.Module:
    """A network for torchmetrics whose inputs are the features."""
    network = torch.nn.Identity()
    network.num_features = width
    return network


def fid(edited: Tensor, real: Tensor) -> float:
    """Frechet distance of the normal distributions fitted to features [N, C] and [M, C].

    It is computed in an orthonormal basis of what all of them span, where it is the same and its eigenvalue problem
    no wider than there are pictures.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    basis = torch.linalg.qr(torch.cat([edited, real]).mT).Q
    metric = FrechetInceptionDistance(feature=given(basis.shape[1]))
    metric.update(edited @ basis, real=False)
    metric.update(real @ basis, real=True)
    return metric.compute().item()


def kid(edited: Tensor, real: Tensor) -> float:
    """1000 times the unbiased squared MMD of features [N, C] and [M, C] under the kernel (x y / C + 1)^3.

    The mean over subsets as large as the smaller set. Subsets are the same at every call.
    """
    from torchmetrics.image.kid import KernelInceptionDistance
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)        # it says that it keeps the features
        torch.default_generator.manual_seed(SEED)
        size = min(MOST, len(edited), len(real))
        metric = KernelInceptionDistance(feature=given(edited.shape[1]), subsets=SUBSETS, subset_size=size)
        metric.update(edited, real=False)
        metric.update(real, real=True)
        return 1e3 * metric.compute()[0].item()


def pictures(folder: Path) -> list[Path]:
    """The files of pictures in a folder and in those within, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)


def available(weights: Path | None, reference: Path | None, count: int) -> tuple[Sets | None, list[str]]:
    """(what computes the columns for `count` edited pictures, or None; a line that says what is missing for it)."""
    file = next(iter(sorted(weights.glob(SAME))), None) if weights else None
    real = pictures(reference) if reference else []
    if reference is None:
        missing = "give real pictures of the target's domain as --reference"
    elif file is None:
        missing = f"put {INCEPTION} into the folder given as --weights"
    elif not installed("torchmetrics", "torch_fidelity"):
        missing = INSTALL
    elif min(count, len(real)) < 2:
        missing = f"at least two pictures a side are needed: {count} to edit, and {len(real)} in {reference}"
    else:
        return Sets(inception(file), real), []
    return None, [f"no fid, kid: {missing}"]
