"""Words from local models: a caption of a picture, and sentences for an edit direction."""

import torch
from comfy_api.latest import io
from torch import Tensor

from ...mirror_ops.directions.sentences import fill
from ..host.local_models import library, loaded, model_folder, stopping
from ..host.progress import progress_bar
from ..host.values import SEEDS
from ..reports import shown
from ..types import category

ASKS = "Provide a caption for images containing {a} {word}."
SAMPLING = {"do_sample": True, "temperature": 0.95, "eta_cutoff": 1e-5, "max_new_tokens": 128, "min_new_tokens": 15}
AT_ONCE = 16  # sentences a call
PATIENCE = 3  # empty answers in a row


class MirrorCaption(io.ComfyNode):
    """Describes a picture with a BLIP-type model."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorCaption",
            display_name="Mirror Caption",
            category=category(__name__),
            description=(
                "Writes a caption of the picture with a BLIP-type model on your disk, so that it can be inverted "
                "without writing a prompt. An empty prompt works too, only less exactly."
            ),
            search_aliases=["blip", "caption image", "describe picture", "interrogate"],
            inputs=[
                io.Image.Input("image", tooltip="The picture(s) to describe."),
                io.String.Input("model", tooltip="A folder with a BLIP, BLIP-2 or GIT model in transformers' format: "
                                "its path, or one below ComfyUI's models folder. Nothing is downloaded."),
                io.String.Input("begin", default="", optional=True, tooltip="How the caption is to begin."),
                io.Int.Input("longest", default=30, min=1, max=200, optional=True, advanced=True,
                             tooltip="Tokens of the caption, at most."),
            ],
            outputs=[io.String.Output(display_name="caption", is_output_list=True, tooltip="One for each picture.")],
        )

    @classmethod
    def execute(cls, image, model, begin="", longest=30) -> io.NodeOutput:
        folder, transformers = model_folder(model), library()
        with loaded(transformers.AutoModelForImageTextToText, folder) as network:
            processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
            captions = [_caption(network, processor, picture, begin, longest, transformers) for picture in image]
        return io.NodeOutput(captions, ui=shown("\n".join(captions)))


def _caption(network, processor, picture: Tensor, begin: str, longest: int, transformers) -> str:
    """The caption of one picture [H, W, 3] in [0, 1], by greedy search."""
    pixels = (picture[..., :3].float().cpu().clamp(0, 1) * 255).round().byte().numpy()
    words = {"text": begin.strip()} if begin.strip() else {}
    inputs = processor(images=pixels, return_tensors="pt", **words).to(network.device, network.dtype)
    ids = network.generate(**inputs, max_new_tokens=longest, do_sample=False, num_beams=1,
                           stopping_criteria=stopping(transformers))
    return " ".join(processor.batch_decode(ids, skip_special_tokens=True)[0].split())


class MirrorSentences(io.ComfyNode):
    """Sentences about a word, written by a language model."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MirrorSentences",
            display_name="Mirror Sentences",
            category=category(__name__),
            description=(
                "Lets an instruction model on your disk (flan-t5 or the like) write many sentences about a word. Two "
                "of these into CLIP Domain Direction, as given, make an edit direction as pix2pix-zero does."
            ),
            search_aliases=["flan-t5", "sentence bank", "captions for a direction", "pix2pix-zero sentences"],
            inputs=[
                io.String.Input("words", default="cat", multiline=True, tooltip="One or several, one a line."),
                io.String.Input("model", tooltip="A folder with an instruction model in transformers' format: its "
                                "path, or one below ComfyUI's models folder. Nothing is downloaded."),
                io.Int.Input("count", default=256, min=1, max=10000, tooltip="Sentences in all; the paper uses 1000."),
                io.Int.Input("seed", default=0, **SEEDS, control_after_generate=False,
                             tooltip="Another seed writes other sentences."),
                io.String.Input("instruction", default=ASKS, multiline=True, optional=True, advanced=True,
                                tooltip="In braces, word stands for the word and a for its article."),
            ],
            outputs=[io.String.Output(display_name="sentences", tooltip="One a line.")],
        )

    @classmethod
    def execute(cls, words, model, count, seed, instruction=ASKS) -> io.NodeOutput:
        names = [line.strip() for line in words.splitlines() if line.strip()]
        if not names:
            raise ValueError("`words` is empty. Name what the sentences are to be about.")
        if "{word}" not in instruction:
            raise ValueError("`instruction` does not say {word}, so no sentence would be about it.")
        folder, transformers = model_folder(model), library()
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
        with loaded(kind, folder) as network:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            write = _writer(network, tokenizer, transformers)
            sentences = _write_all(write, fill((instruction,), names), count, seed)
        text = "\n".join(sentences)
        return io.NodeOutput(text, ui=shown(text))


def _write_all(write, asks: list[str], count: int, seed: int) -> list[str]:
    """`count` sentences by `write(ask, how many)`, as many for each ask; the same for the same seed."""
    bar, sentences = progress_bar(count), []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for k, ask in enumerate(asks):
            sentences += _write_some(write, ask, len(range(k, count, len(asks))), bar)
    return sentences


def _write_some(write, ask: str, count: int, bar) -> list[str]:
    """`count` sentences in answer to one ask. Raises ValueError if the model answers with nothing."""
    sentences, silent = [], 0
    while len(sentences) < count:
        answers = (" ".join(answer.split()) for answer in write(ask, min(AT_ONCE, count - len(sentences))))
        new = [answer for answer in answers if answer]
        silent = 0 if new else silent + 1
        if silent > PATIENCE:
            raise ValueError("The language model answers with nothing. Use an instruction model, such as flan-t5.")
        sentences += new
        bar.update(len(new))
    return sentences


def _writer(network, tokenizer, transformers):
    """write(ask, how many) -> sentences, with pix2pix-zero's sampling settings."""

    def write(ask: str, many: int) -> list[str]:
        if getattr(tokenizer, "chat_template", None):
            ask = tokenizer.apply_chat_template([{"role": "user", "content": ask}], tokenize=False,
                                                add_generation_prompt=True)
        inputs = tokenizer(ask, return_tensors="pt").to(network.device)
        ids = network.generate(**inputs, **SAMPLING, num_return_sequences=many,
                               stopping_criteria=stopping(transformers))
        begin = 0 if network.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        return tokenizer.batch_decode(ids[:, begin:], skip_special_tokens=True)

    return write
