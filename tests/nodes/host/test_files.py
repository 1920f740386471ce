"""Names of files, and results that follow the files they were read from, in the real executor."""

import os
import shutil

import pytest
import torch
from support.toys import provenance

from harness.graph import Graph, give
from harness.results import GraphFailed, GraphRejected
from mirror_ops.directions.direction import EditDirection, save_direction
from mirror_ops.stochastic.noise_code import NoiseCode, save_code
from mirror_ops.walks.trajectory import Mirror, save_mirror

REFUSED = (GraphFailed, GraphRejected)


@pytest.fixture
def files(host):
    return host.pack_module("nodes.host.files")


def write(path, value, kind="direction"):
    if kind == "direction":
        save_direction(EditDirection(torch.full((1, 7, 4), float(value))), path)
    elif kind == "mirror":
        latents, text = torch.full((3, 1, 4, 8, 8), float(value)), torch.zeros(1, 7, 4)
        save_mirror(Mirror(torch.tensor([3.0, 1.0, 0.0]), latents, latents, text, text.expand(2, 1, 7, 4),
                           provenance()), path)
    else:
        facts = {"encoder": "dpm-encoder", "seed": 3, "eta": 0.5, "cfg": 1.0, "flow": False, "sigma_max": 14.6,
                 "network": "float64", "latent_format": "SD15"}
        latents = torch.full((3, 1, 4, 8, 8), float(value))
        save_code(NoiseCode(torch.tensor([3.0, 1.0, 0.0]), latents, latents[1:].clone(), facts), path)


LOADERS = {"direction": "MirrorLoadDirection", "mirror": "MirrorLoadTrajectory", "code": "CycleDiffusionLoad"}


def value_of(made):
    return next(getattr(made, name) for name in ("delta", "latents") if hasattr(made, name)).flatten()[0].item()


class Loading(Graph):
    """A graph that reads one file, whose name is typed in or comes by wire."""

    def __init__(self, name, wired, kind="direction"):
        super().__init__()
        text = self.add("PrimitiveString", value=name)() if wired else name
        self.made = self.add(LOADERS[kind], file=text)

    def again(self):
        for entry in self.values():
            entry.pop("is_changed", None)  # the executor's note in the graph, which a client sends afresh
        return self


def executed(run):
    return {data["node"] for data in run.named("executing") if data["node"]}


@pytest.mark.parametrize("kind", list(LOADERS))
@pytest.mark.parametrize("wired", [False, True], ids=["by name", "by wire"])
def test_a_replaced_file_is_read_again_and_one_that_stays_is_not(host, run_graph, wired, kind):
    path = host.base / "input" / f"changing-{wired}.safetensors"
    write(path, 1, kind)
    graph = Loading(path.name, wired, kind)
    assert value_of(run_graph(graph.again(), cached=True).outputs[graph.made.id][0]) == 1
    assert graph.made.id not in executed(run_graph(graph.again(), cached=True)), "nothing changed"
    then = path.stat()
    write(path.with_suffix(".new"), 2, kind)
    os.utime(path.with_suffix(".new"), ns=(then.st_atime_ns, then.st_mtime_ns))
    os.replace(path.with_suffix(".new"), path)
    assert path.stat().st_mtime_ns == then.st_mtime_ns and path.stat().st_size == then.st_size
    assert value_of(run_graph(graph.again(), cached=True).outputs[graph.made.id][0]) == 2
    assert graph.made.id not in executed(run_graph(graph.again(), cached=True))
    path.unlink()
    with pytest.raises(REFUSED, match="There is no file"):
        run_graph(graph.again(), cached=True)


def test_a_changed_text_file_named_by_wire_is_read_again(host, run_graph):
    from support import tiny
    file = host.base / "input" / "wired.txt"
    (host.base / "input" / "dogs.txt").write_text("a dog")
    graph = Graph()
    clip = graph.add(give(tiny.clip, "CLIP"))()
    made = graph.add("CLIPDomainDirection", clip=clip, source=graph.add("PrimitiveString", value="wired.txt")(),
                     target="dogs.txt", sentences="text files")
    deltas = []
    for line in ("a red cat", "a cat in the sky"):
        file.write_text(line)
        for entry in graph.values():
            entry.pop("is_changed", None)
        deltas.append(run_graph(graph, cached=True).outputs[made.id][0].delta)
    assert not torch.equal(*deltas)


def test_few_of_the_files_that_a_node_reads_are_watched(host, files, monkeypatch):
    monkeypatch.setattr(files, "_running", lambda: "a node")
    names = [f"many-{k}.safetensors" for k in range(files.REMEMBERED + 1)]
    for name in names:
        (host.base / "input" / name).touch()
    before = files.stamps(None)
    for name in names[:-1]:
        files.noted(name)
    assert files.stamps(None) == before
    files.noted(names[-1])
    assert len(files._read["a node"]) == files.REMEMBERED
    assert files.stamps(None) != before, "the first is no longer watched"


def test_an_empty_second_name_looks_at_no_folder(files, monkeypatch, host):
    monkeypatch.setattr(files.os, "walk", lambda *_: pytest.fail("a folder was scanned"))
    write(host.base / "input" / "alone.safetensors", 1)
    assert files.stamps("alone.safetensors", "")[1] is None and files.stamps("nothing.safetensors") == [None]


@pytest.mark.parametrize("name", [" leading", "trailing ", "walk.1", "a/b c", "ä ö", ".hidden", "a" * 100])
def test_what_is_saved_under_a_name_is_loaded_by_the_name_that_came_out(run_graph, name):
    graph = Graph()
    made = graph.add(give(lambda: EditDirection(torch.ones(1, 7, 4)), "MIRROR_DIRECTION"))
    saved = graph.add("MirrorSaveDirection", direction=made(), filename_prefix=f"names/{name}")
    loaded = graph.add("MirrorLoadDirection", file=saved())
    assert run_graph(graph).outputs[loaded.id][0].delta.eq(1).all()


@pytest.mark.parametrize("name", [
    "", " ", "../out", "/etc/passwd", "a\0b", "a" * 300, "a/" * 3000, "loop/x", "..", ".", "gone/../../out"])
def test_names_that_no_file_can_have_are_refused_before_work(host, run_graph, name):
    if not (host.base / "input" / "loop").is_symlink():
        for folder in ("input", "output"):
            (host.base / folder / "loop").symlink_to("loop")
    graph = Graph()
    made = graph.add(give(lambda: pytest.fail("work began"), "MIRROR_DIRECTION"))
    graph.add("MirrorSaveDirection", direction=made(), filename_prefix=name)
    graph.add("MirrorLoadDirection", file=name)
    with pytest.raises(GraphRejected) as caught:
        run_graph(graph)
    said = [error["details"] for node in caught.value.node_errors.values() for error in node["errors"]]
    for words in ("is no name in the output folder", "There is no file"):
        assert any(words in detail for detail in said), said
    assert max(map(len, said)) < 1000


def test_a_read_only_folder_or_a_full_disk_is_said_before_work(files, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "access", lambda *_: False)
        assert "Nothing can be written in" in files.problem(files.check_prefix, "mirror/walk")
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert "is full" in files.problem(files.check_prefix, "mirror/walk")


def test_walks_of_two_versions_have_a_file_each(files):
    assert len({files.own_file(f"walks/v1.{k}") for k in (5, 6)}) == 2
    assert files.own_file("walks/a.safetensors") == files.own_file(" walks/a")
