"""The network of a distilled edit, and its file.

pix2pix-zero distils one edit into an image-to-image network (Parmar et al. 2023: Co-Mod-GAN, whose settings are not
public). Here the network is NAFNet (Chen et al., "Simple Baselines for Image Restoration", ECCV 2022)
in the class of spandrel, the library with which ComfyUI reads upscaling models: a file of scale 1 that stock nodes load
and run.

NAFNet's simplified channel attention multiplies every channel by a linear map of the picture's mean. A picture that is
run in tiles has a mean in each tile, and the tiles would not meet; so that map is fixed to the constant 1, and what is
left is convolutions: equal wherever the surroundings are, as far as the network's `reach`. Tiles that overlap by less,
as those of stock nodes do, differ from the whole picture near their borders.

ComfyUI runs without spandrel too, so it is imported where a network is made or looked at: the pack loads without.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialised
from torch import Tensor, nn

from ..storage.whole_file import write_whole

if TYPE_CHECKING:
    from spandrel.architectures.NAFNet import NAFNet

FORMAT = "mirror-distilled-edit"
# What a small part of the network is: what scales and shifts its channels, and both ends. 1 or 2 % of the weights.
PART = (".norm", ".beta", ".gamma", ".bias", ".intro.", ".ending.")


@dataclass(frozen=True)
class Shape:
    """Channels at full size, and blocks at each halving; as many in the encoder as in the decoder."""

    width: int = 16
    encoder: tuple[int, ...] = (1, 1, 1, 1)
    middle: int = 1
    decoder: tuple[int, ...] = (1, 1, 1, 1)

    @property
    def multiple(self) -> int:
        """Sides are padded to a multiple of this."""
        return 2 ** len(self.encoder)

    @property
    def reach(self) -> int:
        """Pixels to each side beyond which nothing changes a pixel of the result.

        Both ends and each block hold one 3 x 3 convolution, a block's of cells as large as its halving; and what is
        halved sees a whole cell of the last halving, wherever in it the pixel lies.
        """
        blocks = [(2**level, count) for level, count in enumerate((*self.encoder, self.middle))]
        blocks += [(2**level, count) for level, count in enumerate(reversed(self.decoder))]
        return 2 + sum(cell * count for cell, count in blocks) + self.multiple - 1


def make(shape: Shape, seed: int = 0) -> NAFNet:
    """A new network that returns its picture [B, 3, H, W] unchanged: an edit is learnt as what it adds."""
    from spandrel.architectures.NAFNet import NAFNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NAFNet(
            width=shape.width, middle_blk_num=shape.middle, enc_blk_nums=list(shape.encoder),
            dec_blk_nums=list(shape.decoder),
        )
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if ".sca." in name:
                weight.fill_(1.0 if name.endswith("bias") else 0.0)
                weight.requires_grad_(False)
        network.ending.weight.zero_()
        network.ending.bias.zero_()
    return network


def learnt(network: NAFNet) -> dict[str, Tensor]:
    """{name: weight} of what training changes."""
    return {name: weight for name, weight in network.named_parameters() if weight.requires_grad}


def learn_part(network: NAFNet) -> None:
    """Leaves only PART to be changed by training."""
    for name, weight in network.named_parameters():
        weight.requires_grad_(weight.requires_grad and any(part in f".{name}" for part in PART))


def save(network: NAFNet, path: str | Path, about: dict) -> None:
    """Writes one safetensors file in half precision, with `about` (plain JSON: words, figures, how it was made).

    The file appears whole or not at all. Raises OSError if it can't be written.
    """
    weights = {name: value.detach().half().contiguous().cpu() for name, value in network.state_dict().items()}
    write_whole(Path(path), serialised(weights, {"format": FORMAT, "about": json.dumps(about)}))


def about(path: str | Path) -> dict:
    """What `save` wrote beside the weights. Raises ValueError for another kind of file."""
    try:
        with safe_open(str(path), "pt") as file:
            header = file.metadata() or {}
        if header.get("format") == FORMAT:
            return json.loads(header["about"])
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise ValueError(f"{Path(path).name} is not a readable safetensors file: {error}") from error
    raise ValueError(f"{Path(path).name} is not a distilled edit of this pack: nothing in it says how it was made.")


def load(path: str | Path) -> NAFNet:
    """The network of a file of `save`, in float32. Raises ValueError for another kind of file."""
    about(path)
    return of_weights(load_file(str(path)))


def of_weights(weights: dict[str, Tensor]) -> NAFNet:
    """The network that weights belong to, as spandrel reads it off their names."""
    from spandrel import ModelLoader

    return ModelLoader(device="cpu").load_from_state_dict(weights).model


def is_edit(network: nn.Module) -> bool:
    """Whether a network of spandrel's is one of this pack's: no channel attention, whose map would differ in tiles."""
    from spandrel.architectures.NAFNet import NAFNet

    return isinstance(network, NAFNet) and not any(
        weight.any() for name, weight in network.named_parameters() if ".sca." in name and name.endswith("weight")
    )


def shape_of(network: NAFNet) -> Shape:
    return Shape(network.intro.out_channels, tuple(map(len, network.encoders)), len(network.middle_blks),
                 tuple(map(len, network.decoders)))


def digest(network: NAFNet) -> str:
    """A name of the weights: the same for equal ones."""
    weights = sorted(network.state_dict().items())
    return sha256(b"".join(value.half().cpu().numpy().tobytes() for _, value in weights)).hexdigest()[:12]


def shape_fields(shape: Shape) -> dict:
    return asdict(shape)
