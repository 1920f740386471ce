"""Files that are damaged, hostile or cannot be written: one sentence each, naming the file."""

import errno
import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from support.toys import provenance

from mirror_ops.directions.direction import EditDirection, load_direction, load_pt_pair, save_direction
from mirror_ops.stochastic.langevin import begin, load_state, save_state
from mirror_ops.stochastic.noise_code import NoiseCode, load_code, save_code
from mirror_ops.storage import tensor_file
from mirror_ops.walks.trajectory import Mirror, load_mirror, save_mirror

FACTS = {"encoder": "dpm-encoder", "seed": 3, "eta": 0.5, "cfg": 1.0, "flow": False, "sigma_max": 14.6,
         "network": "float64", "latent_format": "SD15"}


def mirror():
    latents, text = torch.ones(3, 1, 4, 8, 8), torch.zeros(1, 7, 4)
    return Mirror(torch.tensor([3.0, 1.0, 0.0]), latents, latents, text, text.expand(2, 1, 7, 4), provenance())


def code():
    return NoiseCode(torch.tensor([3.0, 1.0, 0.0]), torch.ones(3, 1, 4, 8, 8), torch.ones(2, 1, 4, 8, 8), FACTS)


KINDS = {
    "mirror": (mirror, save_mirror, load_mirror),
    "direction": (lambda: EditDirection(torch.ones(1, 7, 4)), save_direction, load_direction),
    "code": (code, save_code, load_code),
    "walk of latent guidance": (
        lambda: begin((1, 4, 8, 8), 1, 0, {}), save_state, lambda path: load_state(path, {})
    ),
}
EVERY_KIND = pytest.mark.parametrize("kind", list(KINDS))


def parts(path):
    """(header as a dict, the bytes after it) of a safetensors file."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def write(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def with_facts(change):
    def damage(path):
        header, data = parts(path)
        header["__metadata__"] = change(header["__metadata__"])
        write(path, header, data)
    return damage


def without_dtype(path):
    """The header no longer says of what kind a tensor's numbers are."""
    header, data = parts(path)
    del header[max(header)]["dtype"]
    write(path, header, data)


def with_tensors(change):
    def damage(path):
        header, _ = parts(path)
        tensors = load(path)
        save_file(change(tensors), str(path), header["__metadata__"])
    return damage


def load(path):
    from safetensors.torch import load_file
    return load_file(str(path))


def first(change):
    """Changes the first tensor by name."""
    return lambda tensors: {**tensors, min(tensors): change(tensors[min(tensors)])}


DAMAGE = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-50]),
    "text": lambda path: path.write_text("hello"),
    "empty": lambda path: path.write_bytes(b""),
    "a tensor of no type": without_dtype,
    "no facts": with_facts(lambda facts: {k: v for k, v in facts.items() if k != "meta"}),
    "no version": with_facts(lambda facts: {k: v for k, v in facts.items() if k != "version"}),
    "a version that is no number": with_facts(lambda facts: {**facts, "version": "one"}),
    "facts that are no JSON": with_facts(lambda facts: {**facts, "meta": "{"}),
    "facts nested too deeply": with_facts(lambda facts: {**facts, "meta": "[" * 100_000 + "]" * 100_000}),
    "facts that are a list": with_facts(lambda facts: {**facts, "meta": "[1]"}),
    "facts of other types": with_facts(lambda facts: {**facts, "meta": '{"model": 1, "meta": 2, "source": 3}'}),
    "half precision": with_tensors(first(torch.Tensor.half)),
    "a tensor missing": with_tensors(lambda tensors: {"other": torch.ones(1)}),
    "a tensor too many": with_tensors(lambda tensors: {**tensors, "other": torch.ones(1)}),
    "a number that is not finite": with_tensors(first(lambda value: value * float("nan"))),
    "a tensor of other dimensions": with_tensors(first(lambda value: value[None])),
}


@EVERY_KIND
@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damaged_files_are_refused_in_a_sentence_that_names_them(tmp_path, kind, damage):
    make, save, read = KINDS[kind]
    path = tmp_path / "walk.1.safetensors"
    save(make(), path)
    read(path)
    DAMAGE[damage](path)
    with pytest.raises(ValueError, match=r"^walk\.1\.safetensors ") as caught:
        read(path)
    assert type(caught.value) is ValueError and len(str(caught.value)) < 400
    assert "dtype" not in str(caught.value), "in the reader's words, not the user's"


@EVERY_KIND
def test_a_full_disk_is_said_and_leaves_neither_half_a_file_nor_loses_the_old_one(tmp_path, kind, monkeypatch):
    make, save, read = KINDS[kind]
    path = tmp_path / "walk.safetensors"
    save(make(), path)

    def full(tensors, target, header):
        with open(target, "wb") as file:
            file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensor_file, "save_file", full)
    with pytest.raises(ValueError, match="could not be written to .*No space left on device.*Free some space"):
        save(make(), path)
    read(path)
    assert [file.name for file in tmp_path.iterdir()] == ["walk.safetensors"]


@EVERY_KIND
def test_what_was_read_stays_when_its_file_is_written_over_in_place(tmp_path, kind):
    make, save, read = KINDS[kind]
    path = tmp_path / "walk.safetensors"
    save(make(), path)
    there = read(path)
    before = pickle.dumps(there)
    header, data = parts(path)
    with open(path, "r+b") as file:
        file.seek(-len(data), os.SEEK_END)
        file.write(b"\x55" * len(data))
    assert pickle.dumps(there) == before


def zipped(path, name, data, compression):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(name, data)


def repeated(path):
    """An archive whose directory lists one stored entry many times."""
    torch.save(torch.zeros(64, 77, 8), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.filelist += [max(archive.filelist, key=lambda entry: entry.file_size)] * 100
        archive._didModify = True


HOSTILE = {
    "text": lambda path: path.write_text("a cat, a dog"),
    "opcodes": lambda path: path.write_bytes(b"\x80\x02]q\x00(K\x01K\x02e."),
    "no file of torch.save": lambda path: zipped(path, "a.txt", b"hello", zipfile.ZIP_STORED),
    "sparse": lambda path: torch.save(torch.eye(3).to_sparse(), path),
    "sparse rows": lambda path: torch.save(torch.eye(3).to_sparse_csr(), path),
    "meta": lambda path: torch.save(torch.zeros(1, 77, 8, device="meta"), path),
    "a zip bomb": lambda path: zipped(path, "archive/data/0", bytes(50_000_000), zipfile.ZIP_DEFLATED),
    "entries that overlap": repeated,
    "a view of one number": lambda path: torch.save(torch.zeros(1, 1, 1).expand(100_000, 77, 768), path),
    "quantised": lambda path: torch.save(torch.quantize_per_tensor(torch.zeros(1, 77, 8), 0.1, 0, torch.qint8), path),
    "whole numbers": lambda path: torch.save(torch.zeros(1, 77, 8).long(), path),
    "a list": lambda path: torch.save([torch.zeros(1, 77, 8)], path),
    "five dimensions": lambda path: torch.save(torch.zeros(1, 1, 1, 77, 8), path),
}


@pytest.mark.parametrize("make", list(HOSTILE))
def test_hostile_embeddings_are_refused_before_they_are_unpacked(tmp_path, make, monkeypatch):
    torch.save(torch.zeros(1, 77, 8), tmp_path / "good.pt")
    HOSTILE[make](tmp_path / "bad.pt")
    if make in ("a zip bomb", "entries that overlap"):
        loaded = torch.load
        monkeypatch.setattr(torch, "load", lambda path, **how: loaded(path, **how) if "good" in str(path)
                            else pytest.fail("it was unpacked"))
    with pytest.raises(ValueError, match=r"^bad\.pt ") as caught:
        load_pt_pair(tmp_path / "good.pt", tmp_path / "bad.pt")
    assert len(str(caught.value)) < 200
