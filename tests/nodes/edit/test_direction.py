"""Edit directions: their sources, what is said about them, and the files they are read from."""

import builtins
import os
import pickle

import pytest
import torch
from support import tiny
from support.tiny import LAYERS, Scene

from harness.graph import give, node
from harness.results import GraphFailed, GraphRejected
from mirror_ops.directions.direction import EditDirection, SentenceMean, agreement, direction_report, load_pt_pair

CATS, DOGS = "a red cat\na photo of a cat\nthis is a cat", "a red dog\na photo of a dog\nthis is a dog"


def direction(scene, source, target, sentences):
    return scene.add("CLIPDomainDirection", clip=scene.clip, source=source, target=target, sentences=sentences)


def encodings(count, seed, shape=(1, 5, 8)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def test_the_direction_between_equal_sets_is_zero_and_otherwise_the_difference_of_means():
    source, target = encodings(7, 0), encodings(4, 1)
    before, after = SentenceMean(source), SentenceMean(target)
    assert before.to(before).abs().max() == 0
    assert before.to(SentenceMean(source[::-1])).abs().max() < 1e-15
    expected = sum(target) / 4 - sum(source) / 7
    assert torch.allclose(before.to(after), expected.float(), rtol=0, atol=1e-7)
    assert torch.equal(after.to(before), -before.to(after))


def test_the_report_says_when_a_direction_is_noise():
    offset = torch.ones(1, 5, 8, dtype=torch.float64)
    noise = encodings(32, 0), encodings(32, 1)
    clear = noise[0], [e + offset for e in noise[1]]
    reports = {}
    for name, sides in (("noise", noise), ("clear", clear)):
        before, after = map(SentenceMean, sides)
        made = EditDirection(before.to(after))
        reports[name] = direction_report(made, agreement(before, after), (sides[1][0] - sides[0][0]).float())
    assert "WARNING" in reports["noise"] and "WARNING" not in reports["clear"]
    swap, delta = clear[1][0] - clear[0][0], SentenceMean(clear[0]).to(SentenceMean(clear[1]))
    cosine = (swap * delta).sum() / swap.norm() / delta.norm()
    assert f"norm {swap.norm():.1f} against {delta.norm():.1f}, cosine {cosine:.2f}" in reports["clear"]
    assert 0.3 < cosine < 0.95, "one pair is not the mean of many"


def test_text_files_give_the_direction_of_their_lines(run_graph, host):
    (host.base / "input" / "cats.txt").write_text(CATS + "\n\n", encoding="utf-8-sig")
    dogs = DOGS.splitlines()
    for name, lines in (("dogs", dogs[:1]), ("more dogs", dogs[1:])):
        (host.base / "input" / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    scene = Scene()
    read = direction(scene, "cats.txt", "dogs.txt\nmore dogs.txt", "text files")
    given = direction(scene, CATS, DOGS, "as given")
    run = run_graph(scene)
    assert torch.equal(run.outputs[read.id][0].delta, run.outputs[given.id][0].delta)
    assert run.outputs[read.id][0].meta["sentences"] == "3 and 3 (text files)"
    assert "word swap" in run.outputs[read.id][1]


def test_long_sentences_are_read_as_far_as_the_encoder_does(run_graph):
    scene, long = Scene(), " ".join(["a red cat in the sky"] * 20)
    whole = direction(scene, long, "a dog", "as given")
    cut = direction(scene, " ".join(long.split()[:75]), "a dog", "as given")
    run = run_graph(scene)
    assert torch.equal(run.outputs[whole.id][0].delta, run.outputs[cut.id][0].delta)
    assert "1 sentences are longer" in run.outputs[whole.id][1] and "longer" not in run.outputs[cut.id][1]


def test_a_changed_text_file_is_read_again(run_graph, host):
    file = host.base / "input" / "changing.txt"
    (host.base / "input" / "other.txt").write_text("a dog")
    deltas = []
    for second, line in enumerate(("a red cat", "a blue car in the sky")):
        file.write_text(line)
        os.utime(file, (second, second))
        if not deltas:
            scene = Scene()
            read = direction(scene, "changing.txt", "other.txt", "text files")
        scene[read.id].pop("is_changed", None)  # the executor's note in the graph, which a client sends afresh
        deltas.append(run_graph(scene, cached=True).outputs[read.id][0].delta)
    assert not torch.equal(*deltas)


@pytest.mark.parametrize("file, words", [
    ("nothing.txt", "There is no file 'nothing.txt'"), ("cats", "'cats' is not a .txt file"),
    ("../secret.txt", "There is no file '../secret.txt'"), ("empty.txt", "are empty"),
    ("latin.txt", "not text in UTF-8"),
])
def test_text_files_that_cannot_be_read_are_named(run_graph, host, file, words):
    (host.base / "secret.txt").write_text("a cat")
    (host.base / "input" / "empty.txt").write_text(" \n")
    (host.base / "input" / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    scene = Scene()
    direction(scene, file, "a dog", "text files")
    with pytest.raises(GraphRejected) as caught:
        run_graph(scene)
    assert words in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_published_embeddings_are_read_as_means(tmp_path, dtype):
    source, target = torch.randn(1, 77, 8).to(dtype), torch.randn(6, 77, 8).to(dtype)
    for name, value in (("cat", source), ("dog", target)):
        torch.save(value, tmp_path / f"{name}.pt")
    made = load_pt_pair(tmp_path / "cat.pt", tmp_path / "dog.pt")
    assert made.delta.shape == (1, 77, 8) and made.delta.dtype == torch.float32
    assert torch.allclose(made.delta, target.float().mean(0, keepdim=True) - source.float(), rtol=0, atol=1e-6)
    assert made.meta["source"] == "cat" and made.meta["sentences"] == "1 and 6 (precomputed)"


class Trap:
    """What a hostile file would run on being read."""

    def __reduce__(self):
        return eval, ("__import__('builtins').__dict__.update(mirror_trap=True)",)


@pytest.mark.parametrize("write", [
    lambda path: path.write_bytes(pickle.dumps(Trap())),
    lambda path: torch.save({"a": Trap()}, path),
    lambda path: path.write_bytes(b"not a tensor at all"),
    lambda path: path.write_bytes(b""),
    lambda path: torch.save({"cat": torch.zeros(1, 77, 8)}, path),
    lambda path: torch.save(torch.zeros(1, 77, 8, dtype=torch.int64), path),
    lambda path: torch.save(torch.full((1, 77, 8), float("nan")), path),
    lambda path: torch.save(torch.zeros(0, 77, 8), path),
    lambda path: torch.save(torch.zeros(1, 77, 9), path),
])
def test_bad_embeddings_are_refused_and_nothing_in_them_is_run(tmp_path, write):
    torch.save(torch.zeros(1, 77, 8), tmp_path / "good.pt")
    write(tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"bad\.pt|do not match"):
        load_pt_pair(tmp_path / "good.pt", tmp_path / "bad.pt")
    assert not hasattr(builtins, "mirror_trap")


@pytest.mark.every_host
def test_pooled_prompts_get_a_direction_of_their_own(run_graph):
    """SDXL reads a pooled prompt beside the text."""
    scene = Scene(tiny.sdxl)
    made = direction(scene, CATS, DOGS, "as given")
    moved = scene.add("MirrorApplyDirection", conditioning=scene.source, direction=made(), strength=0.5)
    run = run_graph(scene)
    way = run.outputs[made.id][0]
    before, after = run.outputs[scene.source[0]][0][0][1], run.outputs[moved.id][0][0][1]
    assert way.pooled.norm() > 0.1
    assert torch.allclose(after["pooled_output"], before["pooled_output"] + 0.5 * way.pooled)
    assert "pooled part" in run.outputs[made.id][1]


def test_a_direction_of_another_encoder_is_refused(run_graph):
    scene = Scene()
    wrong = scene.add(give(lambda: EditDirection(torch.zeros(1, 77, 768)), "MIRROR_DIRECTION"))
    scene.add("MirrorApplyDirection", conditioning=scene.source, direction=wrong(), strength=1.0)
    with pytest.raises(GraphFailed) as caught:
        run_graph(scene)
    assert "768 numbers a token and the prompt 64" in caught.value.text


def test_the_ramp_is_mirror_diffusions(run_graph):
    """0.65 + 0.02 i for the first 40 of 60 steps, then 0.65 again."""
    scene = Scene(steps=60, scheduler="sgm_uniform")
    way = scene.add(give(lambda: EditDirection(torch.ones(1, 77, 64)), "MIRROR_DIRECTION"))
    sixty = node(lambda text: [[text[0][0], {"start_percent": i / 60, "end_percent": (i + 1) / 60}] for i in range(60)],
                 ("CONDITIONING",), {"text": "CONDITIONING"})
    source = scene.add(sixty, text=scene.source)
    moved = scene.add("MirrorApplyDirection", conditioning=source(), direction=way(), strength=0.65, ramp=1.2,
                      ramp_until=2 / 3)
    run = run_graph(scene)
    before, after = run.outputs[source.id][0], run.outputs[moved.id][0]
    amounts = [(b[0] - a[0]).mean().item() for a, b in zip(before, after, strict=True)]
    assert amounts[:40] == pytest.approx([0.65 + 0.02 * (i + 0.5) for i in range(40)], abs=1e-5)
    assert amounts[40:] == pytest.approx([0.65] * 20, abs=1e-5)


def test_mirror_sample_ramps_along_its_steps(run_graph):
    read = []

    def watched(model):
        model = model.clone()
        model.set_model_attn2_patch(lambda n, context, value, o: read.append(context[0].mean()) or (n, context, value))
        return model

    scene = Scene(steps=6, scheduler="sgm_uniform")
    mirror = scene.invert(Scene.NONE)
    way = scene.add(give(lambda: EditDirection(torch.ones(1, 77, 64)), "MIRROR_DIRECTION"))
    model = scene.add(node(watched, ("MODEL",), {"model": "MODEL"}), model=scene.model)
    scene.sample(mirror, model=model(), direction=way(), strength=0.65, ramp=1.2, ramp_until=0.5, cfg=1.0,
                 exact="source")
    base = run_graph(scene).outputs[scene.source[0]][0][0][0].mean()
    amounts = [(mean - base).item() for mean in read[::LAYERS]]
    assert amounts == pytest.approx([0.65, 0.85, 1.05, 0.65, 0.65, 0.65], abs=1e-4)


def test_encoders_without_a_window_read_sentences_whole_and_no_sentence_is_cut_to_nothing(host, monkeypatch):
    direction = host.pack_module("nodes.edit.direction")
    monkeypatch.setattr(direction, "length", lambda clip, text: 1 + len(text))  # as long as its words, as T5's
    assert direction._fitting(None, "a photo of a cat") == "a photo of a cat"
    monkeypatch.setattr(direction, "length", lambda clip, text: 10 if len(text) <= 8 else 20)
    assert direction._fitting(None, "a photo of a cat") == "a photo"
    assert direction._fitting(None, "一只坐在汽车上的猫的照片") == "一只坐在汽车上的"
