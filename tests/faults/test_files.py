"""Damaged and hostile files, and names that lead nowhere: each is read right, or ends in one clear sentence."""

import json
import pickle
import random
import struct
import zipfile
from collections import Counter

import pytest
import torch
from support.tiny import WIDTH

from harness.results import GraphFailed, GraphRejected

from .graphs import Around
from .verdict import defect, told

pytestmark = pytest.mark.faults
SEED, FLIPS = 3, 25
VALID = ("flipped", "enormous", "empty facts", "first only")  # what may be read: a direction needs no facts
LOADERS = {"MirrorLoadTrajectory": "trajectory", "MirrorLoadDirection": "direction", "CycleDiffusionLoad": "noises"}


class Malicious:
    """Would run a command if it were unpickled."""

    def __reduce__(self):
        return (print, ("the pickle ran",))


def header_of(content: bytes) -> tuple[dict, bytes]:
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:8 + size]), content[8 + size:]


def packed(header: dict | bytes, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def noted(content: bytes, **changes) -> bytes:
    """The file with other metadata; None takes an entry out."""
    header, body = header_of(content)
    facts = {**header["__metadata__"], **changes}
    return packed({**header, "__metadata__": {k: v for k, v in facts.items() if v is not None}}, body)


def without(content: bytes, name: str) -> bytes:
    header, body = header_of(content)
    return packed({key: value for key, value in header.items() if key != name}, body)


def changed(content: bytes, change) -> bytes:
    """The file with other tensors."""
    from safetensors.torch import load, save
    header, _ = header_of(content)
    return save({name: change(x).contiguous() for name, x in load(content).items()}, header["__metadata__"])


def damages(content: bytes, dice: random.Random) -> dict[str, bytes]:
    """A safetensors file, damaged in every way that is known here."""
    header, body = header_of(content)
    names = [name for name in header if name != "__metadata__"]
    nested = "[" * 100_000 + "]" * 100_000
    made = {
        "empty": b"", "one byte": b"\0", "text": b"a file of words\n" * 40,
        "a picture": b"\x89PNG\r\n\x1a\n" + body[:200],
        "huge header": struct.pack("<Q", 2**62) + content[8:], "no header": packed({}, b""), "no metadata": packed(
            {name: header[name] for name in names}, body), "null": packed(b"null"), "a list": packed(b"[1, 2]"),
        "nested header": packed(nested.encode(), body), "nested facts": noted(content, meta=nested),
        "no facts": noted(content, meta=None), "facts are text": noted(content, meta='"words"'),
        "facts are no JSON": noted(content, meta="{"), "empty facts": noted(content, meta="{}"),
        "facts of other types": noted(content, meta='{"model": 3, "cfg": "x", "flow": [], "eta": null, "seed": "y"}'),
        "facts nan": noted(content, meta='{"eta": NaN, "cfg": Infinity}'), "null facts": noted(content, meta="null"),
        "version": noted(content, version="99"), "no version": noted(content, version=None),
        "version of words": noted(content, version="one"), "negative version": noted(content, version="-1"),
        "version of digits": noted(content, version="\u00b2"), "other format": noted(content, format="else"),
        "half precision": changed(content, lambda x: x.half()), "whole numbers": changed(content, lambda x: x.long()),
        "nan": changed(content, lambda x: x * float("nan")), "flat": changed(content, lambda x: x.flatten()),
        "first only": changed(content, lambda x: x[:1]), "enormous": changed(content, lambda x: x * 1e30),
        "one more": changed(content, lambda x: x[None]), "no numbers": changed(content, lambda x: x[:0]),
    }
    made |= {f"without {name}": without(content, name) for name in names}
    made |= {f"cut at {at}": content[:at] for at in (4, 8, 9, 60, len(content) // 2, len(content) - 1)}
    for i in range(FLIPS):
        flipped = bytearray(content)
        for _ in range(dice.randint(1, 8)):
            flipped[dice.randrange(min(len(content), 3000))] ^= 1 << dice.randrange(8)
        made[f"flipped {i}"] = bytes(flipped)
    return made


def pairs(folder) -> dict[str, str]:
    """Names of .pt files that are no pair of embeddings."""
    good = torch.ones(1, 77, WIDTH)
    values = {
        "list": [good], "dict": {"x": good}, "number": 3, "flat": good[0, 0], "none": good[:, :0],
        "nan": good * float("nan"), "whole": good.long(), "complex": good.to(torch.complex64),
        "sparse": good.to_sparse(),
        "meta": good.to("meta"), "quantised": torch.quantize_per_tensor(good, 0.1, 0, torch.qint8),
        "wide": torch.ones(1, 77, 3), "four": good[None],
        "code": Malicious(), "parameter": torch.nn.Parameter(good), "bits": good.bool(),
        "expanded": torch.ones(1).expand(2000, 77, WIDTH),
    }
    for name, value in values.items():
        torch.save(value, folder / f"{name}.pt")
    (folder / "words.pt").write_text("not a tensor")
    (folder / "empty.pt").write_bytes(b"")
    (folder / "pickle.pt").write_bytes(pickle.dumps(Malicious()))
    (folder / "folder.pt").mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        with zipfile.ZipFile(folder / "parameter.pt") as honest:
            for entry in honest.namelist():
                big = entry.endswith("data/0")
                bomb.writestr(entry, b"\0" * 2**29 if big else honest.read(entry))
    return {name: f"faults/{name}.pt" for name in (*values, "words", "empty", "pickle", "folder", "bomb")}


NAMES = ["", " ", ".", "..", "/", "faults", "faults/", "a\0b.safetensors", "x" * 300, "x/" * 3000,
         "../" * 50 + "etc/passwd", "/etc/passwd", "C:\\windows\\x.safetensors",
         "faults/loop.safetensors", "faults/outside.safetensors",
         "faults/dangling.safetensors", "\udc80", "*", "faults/*.safetensors", "con", "~", "$HOME", "\u202e", "a\nb"]


@pytest.fixture(scope="module")
def folder(host):
    """The output folder's part for these tests, with one valid file of each kind, and links that lead nowhere good."""
    graph = Around()
    graph.save_files()
    host.run_graph(graph)
    made = host.base / "output" / "faults"
    (made / "loop.safetensors").symlink_to(made / "loop.safetensors")
    (made / "outside.safetensors").symlink_to("/etc/passwd")
    (made / "dangling.safetensors").symlink_to(made / "nowhere")
    return made


def end(host, node: str, **inputs) -> tuple[str, str]:
    """(how it ended, what was said) of one node by itself."""
    graph = {"1": {"class_type": node, "inputs": inputs}}
    try:
        host.run_graph(graph)
    except GraphRejected as refusal:
        return "refused by the host", str(refusal)
    except GraphFailed as failure:
        wrong = defect(failure, 0)
        return ("DEFECT", f"{wrong}: {told(failure)}") if wrong else ("refused", failure.text)
    return "read", ""


@pytest.mark.parametrize("loader", LOADERS)
def test_damaged_files_are_named(host, folder, figures, loader):
    content = (folder / f"{LOADERS[loader]}_00001_.safetensors").read_bytes()
    ends, defects = Counter(), []
    for name, damaged in damages(content, random.Random(f"{SEED} {loader}")).items():
        (folder / "damaged.safetensors").write_bytes(damaged)
        how, said = end(host, loader, file="faults/damaged.safetensors")
        ends[how] += 1
        if how == "DEFECT" or (how == "read" and not name.startswith(VALID)):
            defects.append(f"{name}: {how} {said}")
    figures(f"damaged files of {loader}: {sum(ends.values())}, {dict(ends)}")
    assert not defects, "\n" + "\n".join(defects)


@pytest.mark.parametrize("loader", LOADERS)
def test_names_that_lead_nowhere_are_named(host, folder, loader):
    found = {name: end(host, loader, file=name) for name in NAMES}
    wrong = [f"{name!r:.40}: {one}" for name, one in found.items() if not one[0].startswith("refused")]
    assert not wrong, "\n" + "\n".join(wrong)


def test_pairs_that_are_no_embeddings_are_named(host, folder, capfd):
    torch.save(torch.zeros(1, 77, WIDTH), folder / "good.pt")
    assert end(host, "MirrorLoadDirection", file="faults/good.pt", target_file="faults/good.pt")[0] == "read"
    found = {name: end(host, "MirrorLoadDirection", file=file, target_file="faults/good.pt")
             for name, file in pairs(folder).items()}
    assert "the pickle ran" not in capfd.readouterr().out
    read = {name for name, (how, _) in found.items() if how == "read"}
    wrong = {name: one for name, one in found.items() if one[0] == "DEFECT"}
    assert not wrong, "\n" + "\n".join(f"{name}: {one}" for name, one in wrong.items())
    assert read <= {"parameter", "expanded"}, read


@pytest.mark.parametrize("saver", ["MirrorSaveTrajectory", "MirrorSaveDirection", "CycleDiffusionSave"])
@pytest.mark.parametrize("prefix", [
    "x" * 300, "a\0b", "../out", "/etc/x", "faults/loop.safetensors/x", "/dev/full"])
def test_prefixes_that_cannot_be_written_are_named(host, folder, saver, prefix):
    graph, kind = Around(), {"MirrorSaveTrajectory": "MIRROR", "MirrorSaveDirection": "MIRROR_DIRECTION"}
    key = {"MirrorSaveTrajectory": "mirror", "MirrorSaveDirection": "direction"}.get(saver, "code")
    made = graph.add(saver, filename_prefix=prefix, **{key: graph.links[kind.get(saver, "MIRROR_CODE")]})
    with pytest.raises((GraphFailed, GraphRejected)) as caught:
        host.run_graph(graph, cached=True)
    if isinstance(caught.value, GraphFailed):
        assert caught.value.node_id == made.id and not defect(caught.value, 0), str(caught.value)[:600]
