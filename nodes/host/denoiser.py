"""Running an algorithm inside the host's own sampling.

`run` calls the host's guider with a sampler whose whole body is the algorithm, so that loading, LoRA and other hooks,
ControlNets, model patches, wrappers, memory and clean-up are the host's, exactly as in a stock sampler. The algorithm
gets a `Walk`: the loaded model as a denoiser, with and without gradients.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...mirror_ops.walks.trajectory import Mirror
from . import gradients
from .attach import SharedNoise, supply
from .branches import Branch, marked
from .compatibility import check_no_step_cache, wants_negative
from .conditioning import PART, Conditioning, split, stepwise, text_of, token_counts, with_pooled_by_step
from .families import check_supported
from .out_of_place import differentiable
from .own_latents import can_share, with_own_latents
from .progress import Progress
from .text_fit import check_fits
from .values import check_result

Result = TypeVar("Result")
_COUNT = "mirror_count"


@dataclass
class Count:
    """Rows that went through the network, forward and backward; backward from wherever the gradient starts."""

    forwards: int = 0
    backwards: int = 0

    def attach(self, patcher: ModelPatcher) -> None:
        """Counts every application of a cloned patcher's model."""

        def apply(executor, x, *args, **kwargs):
            self.forwards += len(x)
            if torch.is_grad_enabled():
                x, args, kwargs = self._watched(x, args, kwargs)
            return executor(x, *args, **kwargs)

        patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, _COUNT, apply)

    def _watched(self, x: Tensor, args: tuple, kwargs: dict) -> tuple[Tensor, tuple, dict]:
        """The inputs, of which the first that takes a gradient tells when it arrives.

        A gradient that starts at attention maps never passes the output, but whatever goes back arrives at an input.
        """
        rows, inputs = len(x), [x, *args, *kwargs.values()]
        for k, value in enumerate(inputs):
            if isinstance(value, Tensor) and value.requires_grad:
                inputs[k] = value.view_as(value)
                inputs[k].register_hook(lambda _: self._add_backward(rows))
                break
        return inputs[0], tuple(inputs[1 : 1 + len(args)]), dict(zip(kwargs, inputs[1 + len(args) :], strict=True))

    def _add_backward(self, rows: int) -> None:
        self.backwards += rows


class Prompt:
    """A prompt that the host has processed, whose text can be exchanged.

    given: the CONDITIONING as it came; passed: as it was passed to the host (`stepwise` or the same); entries: what
    the host made of that. Raises ValueError, naming the `family`, for models that do not read the given text as one
    plain embedding.
    """

    def __init__(self, name: str, given: Conditioning, passed: Conditioning, entries: list[dict], family: str):
        self.entries, self.tokens, self.given = entries, token_counts(given), text_of(given, name)
        # The host may add entries, for areas, after ours; those share the text object of the entry they stand for.
        self.parts = {}
        for k, (entry, (text, options)) in enumerate(zip(entries, passed, strict=False)):
            read = entry["model_conds"].get("c_crossattn")
            if read is None or not torch.equal(read.cond, text.to(read.cond)):
                raise ValueError(
                    f"{family} does not read its {name} prompt as one plain embedding, so it cannot be rewritten here."
                )
            self.parts[id(read)] = options.get(PART, k)

    @property
    def embedding(self) -> Tensor:
        """[B or 1, tokens, width] the text as it was given, on the model's device, float32."""
        return self.given.to(self.entries[0]["model_conds"]["c_crossattn"].cond.device, torch.float32, copy=True)

    def saying(self, embedding: Tensor) -> list[dict]:
        """The host's entries with the texts of `embedding` [B or 1, tokens, width]."""
        texts = split(embedding, self.tokens)
        made = {}
        for entry in self.entries:
            read = entry["model_conds"]["c_crossattn"]
            if id(read) not in made:
                made[id(read)] = type(read)(texts[self.parts[id(read)]])
        return [_reading(entry, made[id(entry["model_conds"]["c_crossattn"])]) for entry in self.entries]


class Held(NamedTuple):
    """The prediction of the prompt that stays the same."""

    x: Tensor | None
    prompt: list | None
    sigma: float | None
    denoised: Tensor | None


class Walk:
    """The model during one `run`."""

    def __init__(self, guider: comfy.samplers.CFGGuider, sigmas: Tensor, model_options: dict, progress: Progress):
        self.guider, self.sigmas, self.model_options, self.progress = guider, sigmas, model_options, progress
        self.checkpoint = False  # whether passes with gradients recompute their activations
        self.device = guider.model_patcher.load_device
        self.half = guider.inner_model.get_dtype_inference() == torch.float16
        self.prompts: dict[str, Prompt] = {}
        self.denoised = None  # the last prediction [B, C, H, W], for previews; the edit's where there is an edit
        self._shows_edit = False
        self._held = Held(None, None, None, None)

    def latent_in(self, latent: Tensor) -> Tensor:
        """A LATENT's samples in model space, float32, on the model's device."""
        return self.guider.inner_model.process_latent_in(latent.to(self.device, torch.float32, copy=True))

    def latent_out(self, x: Tensor) -> Tensor:
        """Model-space latents as a LATENT's samples, differentiable."""
        return self.guider.inner_model.process_latent_out(x)

    @property
    def least_sigma(self) -> float:
        """The first level of the model's table."""
        return float(self.guider.inner_model.model_sampling.sigma_min)

    @property
    def table(self) -> Tensor:
        """The model's rising table of levels."""
        return self.guider.inner_model.model_sampling.sigmas

    def denoise(
        self, x: Tensor, sigma: Tensor, positive: list, negative: list | None = None, cfg: float = 1.0, hold=None,
        branch: Branch = Branch.SAMPLER, together: Callable[[dict], list[Tensor]] | None = None,
    ) -> Tensor:
        """The guided prediction D [B, C, H, W] at (x, sigma): one call of the guider, as a stock sampler makes it.

        Differentiable in x and in the texts if gradients are enabled. `hold` is `positive` or `negative`: the one that
        stays the same while x does. It is then evaluated once, without gradient, and not again for this x.
        `branch` says whom the evaluation is for, and with that which controls on the model act (branches.py).
        `together` takes the place of the host's evaluation of both prompts.
        Patches that compare with a negative's prediction at every step (`wants_negative`) get the positive's if there
        is no negative.
        """
        self.progress.evaluated()
        with_gradient = torch.is_grad_enabled()
        options = differentiable(self.model_options) if with_gradient else self.model_options
        options = options if branch is Branch.SAMPLER else marked(options, branch)
        if wants_negative(options):
            negative = positive if negative is None else negative
        elif cfg == 1 and branch is Branch.SOURCE:
            negative = None  # which this pack's own patches ask for at cfg 1, too, but they keep still here
        if together is not None:
            options = {**options, "sampler_calc_cond_batch_function": together}
        if hold is not None and cfg != 1 and "sampler_calc_cond_batch_function" not in options:
            options = {**options, "sampler_calc_cond_batch_function": lambda args: self._predict(args, hold)}
        scale = gradients.BackwardScale()
        if with_gradient and self.half:
            positive, negative = _in_range(positive, scale), _in_range(negative, scale)
            x = scale.leave(x) if x.requires_grad else x
        self.guider.conds = {**self.guider.conds, "positive": positive, "negative": negative}
        self.guider.cfg = cfg
        network = self.guider.inner_model.diffusion_model
        with gradients.differentiable_pass(network, self.checkpoint) if with_gradient else nullcontext():
            denoised = self.guider(x, sigma.to(x.dtype).expand(len(x)), model_options=options, seed=0)
        if branch is Branch.EDIT or not self._shows_edit:
            self.denoised, self._shows_edit = denoised.detach(), branch is Branch.EDIT
        return scale.enter(denoised) if with_gradient and self.half else denoised

    def denoise_pair(
        self, x: Tensor, y: Tensor, sigma: Tensor, source: list, target: list, negative: list | None,
        source_cfg: float, cfg: float,
    ) -> tuple[Tensor, Tensor]:
        """The predictions of the source at x and of the edit at y, both [B, C, H, W].

        The same as two calls of `denoise`, by one call of the network where the source is not guided and nothing on
        the model could tell the difference.
        """
        if source_cfg != 1 or not self._is_plain or not can_share([source, target, negative]):
            seen = self.denoise(x, sigma, source, negative, source_cfg, branch=Branch.SOURCE)
            return seen, self.denoise(y, sigma, target, negative, cfg, branch=Branch.EDIT)
        taken = []

        def together(args: dict) -> list[Tensor]:
            conds, options = args["conds"], with_own_latents(args["model_options"], {len(args["conds"]): x})
            *found, seen = comfy.samplers.calc_cond_batch(
                args["model"], [*conds, source], args["input"], args["sigma"], options
            )
            taken.append(seen)
            return found

        edited = self.denoise(y, sigma, target, negative, cfg, branch=Branch.EDIT, together=together)
        return taken[0], edited

    @property
    def _is_plain(self) -> bool:
        """Whether the model has no patches and wrappers but ours that count: none that may tell branches apart."""
        options = self.model_options.get("transformer_options", {})
        patched = set(self.model_options) - {"transformer_options", "to_load_options"} or any(
            options.get(name) for name in ("patches", "patches_replace", "optimized_attention_override")
        )
        wrappers = {key for keys in options.get("wrappers", {}).values() for key in keys}
        return not patched and wrappers <= {_COUNT}

    def _predict(self, args: dict, hold: list) -> list[Tensor]:
        """The predictions of both prompts, one at a time; the held one, from memory if it is there, comes first.

        That order matters to prompts with LoRA hooks: the weights that the backward pass needs are the last used.
        """
        x, sigma = args["input"], args["sigma"]

        def predict(conds: list | None) -> Tensor:
            model, options = args["model"], args["model_options"]
            return comfy.samplers.calc_cond_batch(model, [conds], x, sigma, options)[0]

        held = self._held
        if held.x is not x or held.prompt is not hold or held.sigma != float(sigma[0]):
            with torch.no_grad():
                held = self._held = Held(x, hold, float(sigma[0]), predict(hold))
        return [held.denoised if conds is hold else predict(conds) for conds in args["conds"]]


def run(
    model: ModelPatcher,
    latent: Tensor,
    sigmas: Tensor,
    prompts: dict[str, Conditioning],
    algorithm: Callable[[Walk], Result],
    *,
    evaluations: int,
    by_step: tuple[str, ...] = (),
    pooled_by_step: dict[str, Tensor] | None = None,
    reference: Mirror | SharedNoise | None = None,
    with_gradients: bool = False,
    checkpoint: bool = True,
) -> tuple[Result, Count]:
    """(what `algorithm(walk)` returns, network rows it took). `model` is cloned, never changed.

    latent [B, C, H, W] gives the shape and, to inpainting models, the picture; sigmas [T+1] are what patches see as
    the schedule; `prompts` maps names ("positive", "negative", any other) to CONDITIONING; those named in `by_step` are
    passed step by step, as they leave when rewritten, because the host treats areas in them differently;
    `pooled_by_step` maps some of those to pooled outputs [T, entries, B or 1, pooled width]. `reference` is the source
    for controls on the model (attach.py): a mirror, or SHARED_NOISE if the walk evaluates it itself. `evaluations`
    bounds the progress. Raises ValueError, before any work, for prompts that cannot be rewritten or come from another
    model's CLIP, and for models that skip passes; and for a result that is not finite.
    """
    check_no_step_cache(model.model_options)
    check_supported(model, latent)
    check_fits(model, prompts, latent)
    patcher, count = model.clone(), Count()
    count.attach(patcher)
    supply(patcher, reference)
    if with_gradients:
        gradients.prepare(patcher, checkpoint)
    guider = comfy.samplers.CFGGuider(patcher)
    sampling = patcher.get_model_object("model_sampling")
    passed = {
        name: stepwise(conditioning, sigmas, sampling) if name in by_step else conditioning
        for name, conditioning in prompts.items()
    }
    for name, pooled in (pooled_by_step or {}).items():
        passed[name] = with_pooled_by_step(passed[name], pooled)
    guider.inner_set_conds(passed)
    result = []

    def body(denoiser, x, sigmas, extra_args, callback, disable):
        conds = guider.conds
        try:
            walk = Walk(guider, sigmas, extra_args["model_options"], Progress(patcher, evaluations))
            walk.checkpoint = checkpoint
            family = type(patcher.model).__name__
            walk.prompts = {name: Prompt(name, prompts[name], passed[name], conds[name], family) for name in prompts}
            result.append(algorithm(walk))
        finally:
            guider.conds = conds
        return x

    # Leaving inference mode also enables gradients; only those who ask for them shall have them.
    with torch.inference_mode(False), torch.no_grad():
        latent = latent.clone()
        sampler = comfy.samplers.KSAMPLER(body)
        guider.sample(torch.zeros_like(latent), latent, sampler, sigmas.clone(), disable_pbar=True, seed=0)
    check_result(result[0])
    return result[0], count


def _in_range(prompt: list[dict] | None, scale: gradients.BackwardScale) -> list[dict] | None:
    """The prompt with its backward scaled; a prompt that takes no gradient is left as it is."""
    if prompt is None or not any(entry["model_conds"]["c_crossattn"].cond.requires_grad for entry in prompt):
        return prompt
    texts = {}
    for entry in prompt:
        text = entry["model_conds"]["c_crossattn"]
        if id(text) not in texts:
            texts[id(text)] = type(text)(scale.leave(text.cond))
    return [_reading(entry, texts[id(entry["model_conds"]["c_crossattn"])]) for entry in prompt]


def _reading(entry: dict, text) -> dict:
    """A processed entry with another text object."""
    return {**entry, "model_conds": {**entry["model_conds"], "c_crossattn": text}}
