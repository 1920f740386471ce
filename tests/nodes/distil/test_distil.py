"""The nodes of distilled edits in the real host: pairs, training, and use by stock nodes."""
import logging
from types import SimpleNamespace

import pytest
import torch

from demo.distil import EDITS, before_and_after, pixels
from demo.render import render
from harness.graph import Graph, give
from harness.results import GraphFailed

SIDE = 48
HELD_OUT = 1_000_000


def squares(count: int, seed: int = 0):
    """(pictures with a green square, the same with a red one, where the squares are)."""
    generator = torch.Generator().manual_seed(seed)
    before = torch.rand(count, SIDE, SIDE, 3, generator=generator) * 0.3 + 0.3
    after, region = before.clone(), torch.zeros(count, SIDE, SIDE)
    for k in range(count):
        top, left = (int(torch.randint(SIDE // 2, (), generator=generator)) for _ in range(2))
        square = (k, slice(top, top + SIDE // 2), slice(left, left + SIDE // 2))
        before[square], after[square], region[square] = torch.tensor([.1, .8, .1]), torch.tensor([.9, .1, .1]), 1
    after[region == 0] = before[region == 0]
    return before, after, region


def gather(g: Graph, folder: str, count: int = 10, **changes):
    made = g.add(give(lambda: squares(count), "IMAGE", "IMAGE", "MASK"))
    return g.add("MirrorSavePair", before=made(0), after=made(1), region=made(2), folder=folder,
                 **{"least_region": 0.005, "most_region": 0.9, "outside": 30.0, **changes})


def trained(run_graph, name: str, **changes):
    g = Graph()
    settings = {"steps": 3, "batch": 2, "size": 32, "loss": "pixels, edges, adversarial", "seed": 0, **changes}
    if "base" in settings:
        settings["base"] = g.add(settings["base"])()
    node = g.add("MirrorTrainEdit", folder=name, name=name, **settings)
    return run_graph(g).outputs[node.id]


def test_only_good_pairs_are_kept_and_it_is_said_why(run_graph):
    g = Graph()
    good, bad = gather(g, "good"), gather(g, "bad", most_region=0.1)
    run = run_graph(g)
    assert run.outputs[good.id][0] == 10 and run.outputs[bad.id][0] == 0
    assert "left out: its region is 25.0% of the picture" in run.outputs[bad.id][1]
    assert "10 pairs in" in run_graph(g).outputs[good.id][1], "the same pictures are the same pairs"


@pytest.mark.every_host
def test_stock_nodes_run_the_trained_file(run_graph):
    g = Graph()
    gather(g, "stock")
    run_graph(g)
    upscale_model, sheet, report = trained(run_graph, "stock", steps=4)
    assert upscale_model.scale == 1 and "stock.safetensors" in report and sheet.shape[-1] == 3
    g = Graph()
    picture = g.add(give(lambda: torch.rand(2, 40, 56, 3), "IMAGE"))
    loaded = g.add("UpscaleModelLoader", model_name="stock.safetensors")
    made = g.add("ImageUpscaleWithModel", upscale_model=loaded(), image=picture())
    applied = g.add("MirrorApplyEdit", edit=loaded(), image=picture(), strength=0.0, paste=True, widen=3, soften=2)
    run = run_graph(g)
    assert run.outputs[made.id][0].shape == (2, 40, 56, 3)
    assert torch.allclose(run.outputs[applied.id][0], run.outputs[picture.id][0], atol=1e-6), "strength 0: the picture"
    assert "pictures a second" in run.outputs[applied.id][2]


def test_tiles_of_a_large_picture_meet(host, run_graph):
    """Upscale Image (using Model) cuts pictures above 512 pixels into tiles that overlap by 32; a network that sees no
    further meets there."""
    network, training = (host.pack_module(name) for name in ("mirror_ops.distillation.network", "nodes.host.training"))
    made, generator = network.make(network.Shape(8, (1, 1), 1, (1, 1))), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.learnt(made).values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    network.save(made, training.model_file("tiles"), {})
    picture = torch.rand(1, 96, 800, 3, generator=generator)
    g = Graph()
    loaded = g.add("UpscaleModelLoader", model_name="tiles.safetensors")
    tiled = g.add("ImageUpscaleWithModel", upscale_model=loaded(), image=g.add(give(lambda: picture, "IMAGE"))())
    found = run_graph(g).outputs[tiled.id][0]
    with torch.no_grad():
        whole = network.load(training.model_file("tiles"))(picture.movedim(-1, 1)).clamp(0, 1).movedim(1, -1)
    assert (found - whole).abs().max() < 0.05 * (whole - picture).abs().max()


def test_the_shipped_edit_on_a_large_picture_is_that_of_the_whole(host, run_graph):
    """It sees 63 pixels to each side: Mirror Apply Edit's tiles overlap by that. The stock node's do not: most of its
    pixels are right, some are not."""
    scenes = [pixels(render(before_and_after(HELD_OUT + k, "fox", "dog")[0])).float() / 255 for k in range(6)]
    picture = torch.cat([torch.cat(scenes, dim=2)[:, :, :700], torch.cat(scenes[::-1], dim=2)[:, :, :700]], dim=1)
    g = Graph()
    given = g.add(give(lambda: picture.movedim(0, -1)[None], "IMAGE"))
    loaded = g.add("UpscaleModelLoader", model_name="fox_to_dog.safetensors")
    stock = g.add("ImageUpscaleWithModel", upscale_model=loaded(), image=given())
    ours = g.add("MirrorApplyEdit", edit=loaded(), image=given(), strength=1.0, paste=False, widen=2, soften=2)
    run = run_graph(g)
    network = host.pack_module("mirror_ops.distillation.network")
    with torch.no_grad():
        whole = network.load(EDITS / "fox_to_dog.safetensors")(picture[None]).clamp(0, 1).movedim(1, -1)
    assert (run.outputs[ours.id][0] - whole).abs().max() < 1e-5
    apart = (run.outputs[stock.id][0] - whole).abs().amax(dim=-1)
    print(f"stock tiles: up to {apart.max():.3f}, {(apart > 8 / 255).float().mean():.2%} of the pixels above 8/255")
    assert apart.max() > 1e-3


def test_steps_lie_between_previews_that_take_longer_than_their_turn(host, monkeypatch):
    training, drawn, clock = host.pack_module("nodes.host.training"), [], [0.0]
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    bar = training.Bar(total=100, begun=0, every=5.0)

    def picture():
        clock[0] += 6
        drawn.append(clock[0])

    for done in range(1, 25):
        clock[0] += 1
        bar.reached(done, lambda: "loss 1", picture)
    assert drawn == [12, 24, 36, 48]


def test_stopped_and_queued_again_the_training_ends_the_same(host, run_graph, monkeypatch):
    g = Graph()
    gather(g, "halted")
    run_graph(g)
    straight = trained(run_graph, "halted", steps=8)[0].model.state_dict()
    training = host.pack_module("nodes.host.training")
    monkeypatch.setattr(training.Bar, "reached", stop_at(training, 6))
    with pytest.raises(GraphFailed, match="stop"):
        trained(run_graph, "halted", steps=8, seed=1)
    assert training.training_file("halted").is_file(), "what was learnt is kept"
    begun = []
    monkeypatch.setattr(training.Bar, "reached", lambda self, done, *rest: begun.append(done))
    again = trained(run_graph, "halted", steps=8, seed=1)[0].model.state_dict()
    assert begun == [7, 8] and not training.training_file("halted").exists()
    monkeypatch.undo()
    anew = trained(run_graph, "halted", steps=8, seed=1, batch=2)[0].model.state_dict()
    assert all(torch.equal(again[name], anew[name]) for name in anew)
    assert not all(torch.equal(straight[name], anew[name]) for name in anew)


def test_what_was_trained_by_a_folder_of_a_wire_is_not_trained_again_until_a_pair_is_new(run_graph):
    g = Graph()
    gather(g, "wired")
    run_graph(g)
    g = Graph()
    node = g.add("MirrorTrainEdit", folder=g.add("PrimitiveString", value="wired")(), name="wired", steps=2, batch=2,
                 size=32, loss="pixels, edges", seed=0)

    def trained_again():
        for entry in g.values():
            entry.pop("is_changed", None)  # the executor's note in the graph, which a client sends afresh
        return any(data["node"] == node.id for data in run_graph(g, cached=True).named("executing"))

    assert [trained_again(), trained_again()] == [True, False]
    more = Graph()
    gather(more, "wired", count=12)
    run_graph(more)
    assert [trained_again(), trained_again()] == [True, False]


def descriptor(network):
    from spandrel import ModelLoader
    return ModelLoader().load_from_state_dict(network.state_dict())


def test_a_base_gives_its_weights_and_its_width(host, run_graph):
    network = host.pack_module("mirror_ops.distillation.network")
    g = Graph()
    gather(g, "based")
    run_graph(g)
    base = trained(run_graph, "based", steps=24, width=8)[0]
    after = trained(run_graph, "based", steps=1, base=give(lambda: base, "UPSCALE_MODEL"))[0].model
    alone = trained(run_graph, "based", steps=1, width=8)[0].model
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        near, far = ((made(x) - base.model(x)).abs().mean() for made in (after, alone))
    assert network.shape_of(after).width == 8 and 0 < near < far / 3


def test_another_upscaling_model_is_no_base(run_graph):
    from spandrel.architectures.DnCNN import DnCNN
    g = Graph()
    gather(g, "no base")
    run_graph(g)
    other = descriptor(DnCNN())
    with pytest.raises(GraphFailed, match="is no distilled edit but another upscaling model"):
        trained(run_graph, "no base", base=give(lambda: other, "UPSCALE_MODEL"))


def test_changed_pairs_begin_anew_and_the_unfinished_training_is_kept(host, run_graph, monkeypatch, caplog):
    training = host.pack_module("nodes.host.training")
    g = Graph()
    gather(g, "changed")
    run_graph(g)
    monkeypatch.setattr(training.Bar, "reached", stop_at(training, 2))
    with pytest.raises(GraphFailed, match="stop"):
        trained(run_graph, "changed", loss="pixels, edges")
    monkeypatch.undo()
    g = Graph()
    made = g.add(give(lambda: squares(12, seed=1), "IMAGE", "IMAGE", "MASK"))
    g.add("MirrorSavePair", before=made(0), after=made(1), region=made(2), folder="changed", least_region=0.005,
          most_region=0.9, outside=30.0)
    run_graph(g)
    with caplog.at_level(logging.WARNING):
        trained(run_graph, "changed", loss="pixels, edges")
    assert "of other settings or pairs: it is kept as changed." in caplog.text
    [aside] = training.training_file("changed").parent.glob("changed*.pt")
    assert aside.name != "changed.pt"


def stop_at(training, step: int):
    reached = training.Bar.reached

    def stop(self, done, *rest):
        if done == step:
            raise KeyError("stop")
        reached(self, done, *rest)

    return stop


def test_a_full_disk_neither_stops_a_training_nor_hides_a_stop(host, run_graph, monkeypatch, caplog):
    training, files = (host.pack_module(name) for name in ("nodes.host.training", "mirror_ops.storage.whole_file"))
    g = Graph()
    gather(g, "full")
    run_graph(g)

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.Path, "write_bytes", full)
    with caplog.at_level(logging.WARNING), pytest.raises(GraphFailed, match="not kept: make room .* again") as end:
        trained(run_graph, "full", loss="pixels, edges")
    assert "full.safetensors could not be written: No space left on device" in end.value.text
    assert "Until there is room, Stop loses what was learnt" in caplog.text
    monkeypatch.setattr(training.Bar, "reached", stop_at(training, 2))
    with pytest.raises(GraphFailed, match="stop"):
        trained(run_graph, "full", loss="pixels, edges", seed=1)
    g = Graph()
    gather(g, "full pairs")
    with pytest.raises(GraphFailed, match="could not be written: No space left on device. The pairs kept before are"):
        run_graph(g)
    monkeypatch.undo()
    monkeypatch.setattr(training.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 1000}))
    with pytest.raises(GraphFailed, match="has 0 MB left and this needs"):
        trained(run_graph, "full", loss="pixels, edges", seed=2)


def test_the_editor_shows_the_time_before_and_losses_on_the_way(host, run_graph, monkeypatch):
    training = host.pack_module("nodes.host.training")
    told = []
    monkeypatch.setattr(training.notices, "show", told.append)
    g = Graph()
    gather(g, "told")
    run_graph(g)
    trained(run_graph, "told")
    assert told[0].startswith("Training an edit on 8 pairs, 3 steps: about 0.") and "min. Stop keeps" in told[0]
    assert told[-1].startswith("step 3 of 3: pixel 0.") and "adversarial" in told[-1] and "min left" in told[-1]


def test_a_model_of_the_users_own_is_not_written_over(host, run_graph):
    training = host.pack_module("nodes.host.training")
    g = Graph()
    gather(g, "own")
    run_graph(g)
    training.model_file("own").write_bytes(b"a model of the user's")
    with pytest.raises(GraphFailed, match="own.safetensors` is in Load Upscale Model already and was not made by"):
        trained(run_graph, "own")
    assert training.model_file("own").read_bytes() == b"a model of the user's"


@pytest.mark.parametrize("changes, message", [
    ({"folder": "nothing here"}, "0 kept pairs"),
    ({"folder": "../../etc"}, "is no name for a file or folder"),
])
def test_bad_input_is_told_before_training(run_graph, changes, message):
    g = Graph()
    g.add("MirrorTrainEdit", **{"folder": "x", "name": "x", "steps": 3, "batch": 2, "size": 32,
                                "loss": "pixels, edges", **changes})
    with pytest.raises(GraphFailed, match=message):
        run_graph(g)


def test_unlike_sizes_and_broken_numbers_are_refused(run_graph):
    before, after, region = squares(1)
    for changed, message in ((after[:, 4:], "`before` is 48 x 48 and `after` 48 x 44 pixels: a pair is of one size"),
                             (after.repeat(4, 1, 1, 1), "`before` and `after` hold 1 and 4 pictures"),
                             (after * float("nan"), "not finite")):
        g = Graph()
        made = g.add(give(lambda changed=changed: (before, changed, region), "IMAGE", "IMAGE", "MASK"))
        g.add("MirrorSavePair", before=made(0), after=made(1), region=made(2), folder="bad input",
              least_region=0.0, most_region=1.0, outside=0.0)
        with pytest.raises(GraphFailed, match=message):
            run_graph(g)


def test_the_command_finds_its_teacher(host):
    """`run.py distil` gives the shipped graph its own words."""
    graph = host.pack_module("demo.distil").teacher(host, "fox", "dog")
    said = {e["inputs"]["text"] for e in graph.nodes.values() if e["class_type"] == "CLIPTextEncode"}
    assert said == {"a photo of a fox", "a photo of a dog"}
