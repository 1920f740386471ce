"""Captions and sentences by local models, tiny and random, made on the spot."""

import sys

import pytest
import torch
from support.tiny import Scene

from harness.graph import Graph, give
from harness.results import GraphFailed

WORDS = "a cat dog on the red blue grass sits runs photo of with and small big".split()


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """The folder of a tiny random T5 with a word for each of WORDS."""
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    folder = tmp_path_factory.mktemp("t5")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0)] + [("\u2581" + word, -1.0) for word in WORDS]
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(pieces), d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=2,
                      decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """The folder of a tiny random BLIP with the same words."""
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    folder = tmp_path_factory.mktemp("blip")
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *WORDS])}
    images = BlipImageProcessor(size={"height": 16, "width": 16})
    BlipProcessor(images, BertTokenizer(vocab=vocabulary, bos_token="[DEC]")).save_pretrained(folder)
    torch.manual_seed(0)
    text = {"vocab_size": len(vocabulary), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "encoder_hidden_size": 16, "bos_token_id": 5, "eos_token_id": 3,
            "sep_token_id": 3, "pad_token_id": 0}
    differentiable_clip = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
             "image_size": 16, "patch_size": 8}
    config = BlipConfig(text_config=text, vision_config=differentiable_clip, projection_dim=16)
    network = BlipForConditionalGeneration(config)
    for weight in network.parameters():
        weight.data.add_(0.5 * torch.randn_like(weight))
    network.save_pretrained(folder)
    return folder


def pictures(count=1):
    return torch.rand(count, 40, 24, 3, generator=torch.Generator().manual_seed(1))


def test_sentences_are_written_and_make_a_direction(run_graph, t5):
    scene = Scene()
    sides = [scene.add("MirrorSentences", words=words, model=str(t5), count=21, seed=seed)
             for words, seed in (("cat\na red cat", 1), ("dog", 2), ("dog", 2), ("dog", 3))]
    direction = scene.add("CLIPDomainDirection", clip=scene.clip, source=sides[0](), target=sides[1](),
                          sentences="as given")
    run = run_graph(scene)
    texts = [run.outputs[side.id][0] for side in sides]
    for text in texts:
        lines = text.splitlines()
        assert len(lines) == 21 and len(set(lines)) > 15
        assert all(set(line.split()) <= set(WORDS) for line in lines)
    assert texts[1] == texts[2] != texts[3]
    way = run.outputs[direction.id][0]
    assert way.meta["sentences"] == "21 and 21 (as given)" and way.delta.norm() > 0
    assert "agreement of the two halves" in run.outputs[direction.id][1]


def test_the_published_sampling_settings_reach_the_model(run_graph, t5, monkeypatch):
    from transformers import T5ForConditionalGeneration
    asked, generate = [], T5ForConditionalGeneration.generate

    def watched(self, *args, **kwargs):
        asked.append({k: v for k, v in kwargs.items() if not isinstance(v, torch.Tensor)})
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(T5ForConditionalGeneration, "generate", watched)
    graph = Graph()
    graph.add("MirrorSentences", words="cat", model=str(t5), count=20, seed=0)
    run_graph(graph)
    assert [call["num_return_sequences"] for call in asked][:2] == [16, 4]
    wanted = {"do_sample": True, "temperature": 0.95, "eta_cutoff": 1e-5, "max_new_tokens": 128, "min_new_tokens": 15}
    assert wanted.items() <= asked[0].items()


def test_an_instruction_may_have_braces_of_its_own(run_graph, t5):
    graph = Graph()
    made = graph.add("MirrorSentences", words="cat", model=str(t5), count=2, seed=0,
                     instruction='Answer as {"text": ...}: a sentence with {word}.')
    assert len(run_graph(graph).outputs[made.id][0].splitlines()) == 2


def test_the_random_state_of_the_host_is_left_alone(run_graph, t5):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    graph = Graph()
    graph.add("MirrorSentences", words="cat", model=str(t5), count=2, seed=0)
    run_graph(graph)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_caption_of_each_picture_is_what_the_model_says(run_graph, blip, host):
    graph = Graph()
    image = graph.add(give(lambda: pictures(2), "IMAGE"))
    made = graph.add("MirrorCaption", image=image(), model=str(blip))
    begun = graph.add("MirrorCaption", image=image(), model=str(blip), begin="a photo of", longest=8)
    run = run_graph(graph)
    captions = run.outputs[made.id][0]
    assert len(captions) == 2 and all(set(caption.split()) <= {*WORDS, "[UNK]"} for caption in captions)
    from PIL import Image
    from transformers import AutoProcessor, BlipForConditionalGeneration
    processor, network = AutoProcessor.from_pretrained(blip), BlipForConditionalGeneration.from_pretrained(blip)
    for picture, caption in zip(pictures(2), captions, strict=True):
        drawn = Image.fromarray((picture * 255).round().byte().numpy())
        with torch.no_grad():
            ids = network.generate(**processor(images=drawn, return_tensors="pt"), max_new_tokens=30, do_sample=False)
        assert caption == processor.decode(ids[0], skip_special_tokens=True).strip() != ""
    assert all(caption.startswith("a photo of") for caption in run.outputs[begun.id][0])


def test_a_caption_is_a_prompt(run_graph, blip):
    scene = Scene(steps=2)
    image = scene.add(give(pictures, "IMAGE"))
    caption = scene.add("MirrorCaption", image=image(), model=str(blip), longest=4)
    mirror = scene.invert(Scene.NONE, positive=scene.text(caption()))
    run = run_graph(scene)
    assert run.outputs[mirror.id][2].source.shape == (1, 77, 64)


@pytest.mark.parametrize("version, argument", [("4.50.3", "torch_dtype"), ("4.56.0", "dtype"), ("5.0.0rc1", "dtype")])
def test_the_precision_is_asked_for_by_the_name_that_this_transformers_knows(host, monkeypatch, version, argument):
    import transformers
    local_models, asked = host.pack_module("nodes.host.local_models"), {}

    class Network(torch.nn.Linear):
        @classmethod
        def from_pretrained(cls, folder, local_files_only, **named):
            asked.update(named)
            return cls(1, 1)

    monkeypatch.setattr(transformers, "__version__", version)
    with local_models.loaded(Network, "folder"):
        assert asked == {argument: torch.float32}


@pytest.mark.parametrize("node", ["MirrorCaption", "MirrorSentences"])
def test_a_folder_without_a_model_is_named(run_graph, node, tmp_path, host):
    assert "`model` is empty" in failure(run_graph, node, "")
    text = failure(run_graph, node, str(tmp_path))
    assert "no transformers model" in text and str(tmp_path) in text
    relative = failure(run_graph, node, "captioning/none")
    assert str(host.folder_paths.models_dir) in relative


def test_models_of_another_kind_are_refused(run_graph, t5, blip):
    assert "cannot be used here" in failure(run_graph, "MirrorCaption", str(t5))
    assert "cannot be used here" in failure(run_graph, "MirrorSentences", str(blip))


@pytest.mark.parametrize("change, words", [
    ({"words": " \n"}, "`words` is empty"), ({"instruction": "write something"}, "does not say {word}"),
])
def test_what_cannot_be_asked_is_named(run_graph, t5, change, words):
    graph = Graph()
    graph.add("MirrorSentences", **{"words": "cat", "model": str(t5), "count": 2, "seed": 0, **change})
    with pytest.raises(GraphFailed) as caught:
        run_graph(graph)
    assert words in caught.value.text


def test_the_pack_does_not_import_the_library(host):
    """The host itself does, so this looks at the sources' own import lines."""
    import ast
    from pathlib import Path
    for name in ("nodes.edit.caption", "nodes.host.local_models"):
        tree = ast.parse(Path(host.pack_module(name).__file__).read_text())
        names = [alias.name for part in tree.body if isinstance(part, ast.Import) for alias in part.names]
        assert "transformers" not in names + [part.module for part in tree.body if isinstance(part, ast.ImportFrom)]
    assert "transformers" in sys.modules


def failure(run_graph, node, model):
    graph = Graph()
    if node == "MirrorCaption":
        graph.add(node, image=graph.add(give(pictures, "IMAGE"))(), model=model)
    else:
        graph.add(node, words="cat", model=model, count=2, seed=0)
    with pytest.raises(GraphFailed) as caught:
        run_graph(graph)
    return caught.value.text
