"""Edit directions from words, and their use on any CONDITIONING."""

from comfy_api.latest import io

from ...mirror_ops.directions.direction import EditDirection, SentenceMean, agreement, direction_report, ramped
from ...mirror_ops.directions.sentences import QUALITIES, THINGS, fill
from ..host.conditioning import Conditioning
from ..host.files import noted, problem, stamps
from ..host.progress import progress_bar, stop_if_interrupted
from ..host.words import length
from ..reports import shown
from ..types import DirectionType, category

AS_GIVEN, FILES = "as given", "text files"
TEXT = (".txt",)
BANKS = {"template bank: things": THINGS, "template bank: qualities": QUALITIES}
RAMP_WINDOWS = 20


class CLIPDomainDirection(io.ComfyNode):
    """The mean difference of many sentences about the target and about the source."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CLIPDomainDirection",
            display_name="CLIP Domain Direction",
            category=category(__name__),
            description=(
                "What to add to a prompt so that it says the target instead of the source: the mean encoding of many "
                "sentences about the target minus that of the same sentences about the source."
            ),
            search_aliases=["edit direction", "pix2pix-zero direction", "sentence difference", "mirrordiffusion"],
            inputs=[
                io.Clip.Input("clip", tooltip="The one that encodes the prompt that the direction is added to."),
                io.String.Input("source", default="cat", multiline=True, tooltip="What is there, one a line."),
                io.String.Input("target", default="dog", multiline=True, tooltip="What should be there instead."),
                io.Combo.Input(
                    "sentences", options=[*BANKS, AS_GIVEN, FILES], tooltip=(
                        "things: over 60 sentence frames for nouns. qualities: the same for words such as `striped`. "
                        "as given: your own sentences, one a line, best in the style of your captions. text files: "
                        "names of .txt files in ComfyUI's output or input folder that hold them."
                    ),
                ),
            ],
            outputs=[
                DirectionType.Output(display_name="direction"),
                io.String.Output(display_name="report", tooltip="Its size, and whether it is more than noise."),
            ],
        )

    @classmethod
    def validate_inputs(cls, source, target, sentences):
        checks = [problem(_sentences, text, sentences, name) for text, name in ((source, "source"), (target, "target"))]
        return next((check for check in checks if check is not True), True)

    @classmethod
    def fingerprint_inputs(cls, clip=None, source=None, target=None, sentences=None):
        if sentences not in (None, FILES):
            return []
        return stamps(*(name for text in (source, target) for name in (_lines(text) if text else [None])))

    @classmethod
    def execute(cls, clip, source, target, sentences) -> io.NodeOutput:
        sides = [_sentences(text, sentences, name) for text, name in ((source, "source"), (target, "target"))]
        if set(sides[0]) == set(sides[1]):
            raise ValueError("Source and target say the same; there is no direction between them.")
        bar = progress_bar(sum(map(len, sides)))
        fitting = [[_fitting(clip, sentence) for sentence in side] for side in sides]
        texts, pooled = zip(*(_means(clip, side, bar) for side in fitting), strict=True)
        direction = EditDirection(
            delta=texts[0].to(texts[1]),
            pooled=pooled[0].to(pooled[1]) if pooled[0].count else None,
            meta={"source": ", ".join(source.split("\n")), "target": ", ".join(target.split("\n")),
                  "sentences": f"{len(sides[0])} and {len(sides[1])} ({sentences})"},
        )
        report = direction_report(direction, agreement(*texts), (texts[1].first - texts[0].first).float())
        cut = sum(a != b for one, other in zip(sides, fitting, strict=True) for a, b in zip(one, other, strict=True))
        if cut:
            report += f"\n{cut} sentences are longer than the encoder's window: their ends were left out."
        return io.NodeOutput(direction, report, ui=shown(report))


def _means(clip, sentences: list[str], bar) -> tuple[SentenceMean, SentenceMean]:
    """(of the texts, of the pooled outputs) of one side; no encoding is kept."""
    texts, pooled = SentenceMean(), SentenceMean()
    for sentence in sentences:
        stop_if_interrupted()
        text, whole = clip.encode_from_tokens(clip.tokenize(sentence), return_pooled=True)
        texts.add(text)
        if whole is not None:
            pooled.add(whole)
        bar.update(1)
    return texts, pooled


def _sentences(text: str, sentences: str, name: str) -> list[str]:
    """The sentences of one side: the bank's frames filled with the words, or the lines themselves."""
    lines = _lines(text)
    if not lines:
        raise ValueError(f"`{name}` is empty. Say in a word, or in sentences, what the direction leads {_way(name)}.")
    if sentences == FILES:
        lines = [line for file in lines for line in _lines(_read(file))]
        if not lines:
            raise ValueError(f"The files of `{name}` are empty. They should hold a sentence a line.")
        return lines
    return lines if sentences == AS_GIVEN else fill(BANKS[sentences], lines)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _read(name: str) -> str:
    """The text of a .txt file in the input or output folder; ValueError if it is none."""
    if not name.lower().endswith(".txt"):
        raise ValueError(f"{name!r} is not a .txt file. With `sentences` at {FILES}, give file names, one a line.")
    try:
        return noted(name, TEXT).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not text in UTF-8; save it as such.") from error


def _way(name: str) -> str:
    return "away from" if name == "source" else "to"


def _fitting(clip, sentence: str) -> str:
    """As much of a sentence as one window of the encoder holds, which is all that the paper's code reads. Encoders
    whose texts are as long as their words have no window."""
    window = length(clip, "")
    if length(clip, "a") != window:
        return sentence
    while length(clip, sentence) > window:
        sentence = sentence.rpartition(" ")[0] or sentence[:-1]  # some languages have no spaces
    return sentence


class MirrorApplyDirection(io.ComfyNode):
    """conditioning + strength x direction, for stock samplers."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorApplyDirection",
            display_name="Mirror Apply Direction",
            category=category(__name__),
            description=(
                "Adds strength x direction to a prompt. Put the `positive` of Redescribed DDIM Invert through it, to "
                "edit with a stock sampler instead of Mirror Sample."
            ),
            search_aliases=["edit direction", "add direction", "conditioning arithmetic"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The prompt that is moved, rewritten or not."),
                DirectionType.Input("direction", tooltip="From CLIP Domain Direction or Mirror Load Direction."),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="At the noisy end."),
                io.Float.Input(
                    "ramp", default=0.0, min=-10.0, max=10.0, step=0.05, optional=True, advanced=True,
                    tooltip="How much the strength has grown at the clean end. 0: the same all the way.",
                ),
                io.Float.Input(
                    "ramp_until", default=1.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="Part of the walk after which the strength falls back to where it began.",
                ),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(
        cls, conditioning, direction: EditDirection, strength, ramp=0.0, ramp_until=1.0
    ) -> io.NodeOutput:
        if ramp:
            conditioning = [part for entry in conditioning for part in _windowed(entry)]
        amounts = [ramped(strength, ramp, ramp_until, _halfway(entry)) for entry in conditioning]
        return io.NodeOutput([_moved(*pair, direction) for pair in zip(conditioning, amounts, strict=True)])


def _halfway(entry: list) -> float:
    """The middle of an entry's window."""
    return (entry[1].get("start_percent", 0.0) + entry[1].get("end_percent", 1.0)) / 2


def _moved(entry: list, amount: float, direction: EditDirection) -> list:
    text, options = entry
    pooled = options.get("pooled_output")
    if pooled is not None:
        options = {**options, "pooled_output": pooled + amount * direction.for_pooled(pooled)}
    return [text + amount * direction.for_tokens(*text.shape[1:]).to(text), options]


def _windowed(entry: list) -> Conditioning:
    """An entry that holds all the way, as adjoining windows; an entry with a window of its own stays as it is."""
    text, options = entry
    if "start_percent" in options or "end_percent" in options:
        return [entry]
    borders = [i / RAMP_WINDOWS for i in range(RAMP_WINDOWS + 1)]
    return [
        [text, {**options, "start_percent": a, "end_percent": b}] for a, b in zip(borders, borders[1:], strict=False)
    ]
