"""The embedded model's tokenizer: CLIP's byte-level BPE with one token for every word of `vocabulary`.

Words outside it fall apart into letters, as rare words do in CLIP.
"""
from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import numpy as np

from mirror_ops.directions.sentences import QUALITIES, THINGS

from ..scene import ARTICLES, ATTRIBUTES, PREFIXES

# Everyday words that captions written outside this world are likely to hold. They mean nothing here; the model learns
# to read past them.
EVERYDAY = """
a about above across after afternoon against air all along alone am among an and angle animal animals another any
apple are area around art as asleep at autumn away baby back backdrop backyard ball barn basket be beach beautiful bed
before behind being bench beneath beside best between big bird black blurry board boat book both bowl box boy bright
bridge brick building bush by cafe calm camera candid captured car card carpet castle center chair child children city
clean clear close close-up closeup cloud cloudy coast coat cold color colorful colourful common cool corner
countryside couch courtyard cozy crisp cropped curious curled cute dark dawn day daylight deep desert desk detailed
different distance door down dramatic drawing drawn dreamy dusk each early earth edge empty enjoying evening every
exploring eyes face family famous farm fast favorite favourite fence field film fine fire first floor flower flowers
focus foggy for forest forward found four framed free fresh friend friendly friends from front full funny fur furry
garden gentle gently giant girl glass gazing golden good graceful grass grassy gray great green grey ground group hand
hands happily happy harbor has have head hearth heavy her here high hill hillside his holding holiday home hour house
huge hungry i ice image in indoors inside into is island it its journal jumping just keeping kind kitchen lake
landscape large late lawn lay lazy lazily leaning leaves left lens library life light lights like lit little lived
lonely long looking looks lot lovely low lying macro made magazine majestic making man many market meadow mid middle
mirror mist misty modern moment moonlight morning most mountain mountains much museum my named natural nature near new
next nice night no noble noon not object of old on one only open or orchard other our out outdoors outside over
painted painting pair palm park part past patch path peaceful people person pet photo photograph photographed
photographer photography picture piece place playful playfully playing plant pond pool porch portrait pose posing
postcard posted pretty print professional profile proud proudly quick quiet quietly rain rainy red reflection relaxing
rendered rendering resting right river road rock rocks rocky room round rug run running rustic sand sandy sat scene
scenery season seat seated seen serene shade shadow shady sharp she shiny shop shore shot show shown shows side
sidewalk simple single sitting sketch sky sleeping sleepy slow small smiling snapshot snow snowy soft sofa some
someone spring square stage stairs standing staring statue staying steps still stone stood storm stormy strange stream
street studio stylized such summer sun sunlight sunny sunrise sunset surrounded sweet swimming table taken tall tan
texture than that the their them there they thick thing this three through time tiny to today together top tower town
toy trail train travel tree trees turned two under up upon used very view vintage vivid waiting walk walking wall warm
watching water waves wearing weather well wet what when where which while who wide wild will wind window winter wise
with wonderful wood wooden woods world yard year yellow yesterday you young your zoo
""".split()


@cache
def fillers() -> tuple[str, ...]:
    """Words without meaning in this world: everyday ones and those of the sentence bank."""
    bank = re.findall(r"[a-z]+", re.sub(r"{.*?}", "", " ".join(THINGS + QUALITIES)))
    return tuple(sorted({*EVERYDAY, *bank} - _grammar()))


def vocabulary() -> list[str]:
    """All words that get a token of their own: the captions' grammar first, then the fillers."""
    return [*sorted(_grammar()), *fillers()]


def _grammar() -> set[str]:
    values = (v for values in ATTRIBUTES.values() for v in values)
    other = "animal an glasses round big no with wearing and hat in front of on background"
    return set(" ".join([*PREFIXES, *ARTICLES, *values, other]).split())


def write(folder: Path, words: list[str]) -> None:
    """Write a CLIPTokenizer directory: byte symbols, merges for each word, start and end tokens."""
    symbols = [*_byte_symbols(), *(s + "</w>" for s in _byte_symbols())]
    ranks = _merges(words)
    vocab = {s: i for i, s in enumerate([*symbols, *("".join(pair) for pair in ranks)])}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    folder.mkdir(parents=True, exist_ok=True)
    end = {"content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    start = {**end, "content": "<|startoftext|>"}
    tokens = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": "<|endoftext|>"}
    config = {**tokens, "add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77,
              "tokenizer_class": "CLIPTokenizer"}
    for name, value in (("vocab.json", vocab), ("special_tokens_map.json", tokens), ("tokenizer_config.json", config)):
        (folder / name).write_text(json.dumps(value, ensure_ascii=False, indent=0), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in ranks)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _merges(words: list[str]) -> dict[tuple[str, str], int]:
    """Merges by rank that make one token of every word. Each word's merges rank behind those of the words before it, so
    they never break an earlier word up."""
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        while len(parts := _bpe(word, ranks)) > 1:
            ranks[parts[0], parts[1]] = len(ranks)
    return ranks


def _bpe(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    parts = [*word[:-1], word[-1] + "</w>"]
    while pairs := [p for p in zip(parts, parts[1:], strict=False) if p in ranks]:
        best, joined = min(pairs, key=ranks.__getitem__), []
        for part in parts:
            if joined and (joined[-1], part) == best:
                joined[-1] += part
            else:
                joined.append(part)
        parts = joined
    return parts


def _byte_symbols() -> list[str]:
    """The 256 printable characters that stand for bytes in byte-level BPE (GPT-2's table)."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    other = [b for b in range(256) if b not in kept]
    return [chr(b) for b in kept] + [chr(256 + i) for i in range(len(other))]


class Encoder:
    """Captions to token rows [B, 77] exactly as the host tokenises them; words are looked up once."""

    def __init__(self, folder: Path):
        from transformers import CLIPTokenizer
        self._tokenizer = CLIPTokenizer.from_pretrained(str(folder))
        self._words: dict[str, list[int]] = {}
        self.start, self.end = self._tokenizer("")["input_ids"]

    def __call__(self, captions: list[str]) -> np.ndarray:
        rows = np.full((len(captions), 77), self.end, np.int64)
        for row, text in zip(rows, captions, strict=True):
            ids = [i for word in text.split() for i in self._word(word)][:75]
            row[0], row[1:1 + len(ids)] = self.start, ids
        return rows

    def _word(self, word: str) -> list[int]:
        if word not in self._words:
            self._words[word] = self._tokenizer(word)["input_ids"][1:-1]
        return self._words[word]
