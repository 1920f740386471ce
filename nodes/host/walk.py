"""The loaded model as a denoiser, with and without gradients: what an algorithm gets during one `denoiser.run`."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property, partial
from typing import NamedTuple

import comfy.samplers
import torch
from torch import Tensor

from . import gradients
from .branches import Branch, marked
from .compatibility import wants_negative
from .count import KEY as COUNT
from .out_of_place import differentiable
from .own_latents import can_share, with_own_latents
from .processed import Entries, Prompt, read_at, reading, same
from .progress import Progress

Evaluate = Callable[[dict], list[Tensor]]  # as comfy.samplers.calc_cond_batch, from a dict of its arguments
_EVALUATE = "sampler_calc_cond_batch_function"


class Asked(NamedTuple):
    """One prediction: at which latent, of which processed prompts, and for whom."""

    x: Tensor  # [B, C, H, W]
    positive: Entries
    negative: Entries | None = None
    cfg: float = 1.0
    branch: Branch = Branch.SAMPLER

    def same_as(self, other: "Asked") -> bool:
        """Whether both ask for the same, whoever asks."""
        if not torch.equal(self.x, other.x) or not same(self.positive, other.positive):
            return False
        if self.cfg == other.cfg and same(self.negative, other.negative):
            return True
        return all(one.cfg == 1 or same(one.positive, one.negative) for one in (self, other))


class Held(NamedTuple):
    """The prediction of the prompt that stays the same."""

    x: Tensor | None
    prompt: Entries | None
    sigma: float | None
    denoised: Tensor | None


class Walk:
    """The model during one `run`."""

    def __init__(
        self, guider: comfy.samplers.CFGGuider, sigmas: Tensor, model_options: dict, progress: Progress,
        with_gradients: bool = False, checkpoint: bool = False,
    ):
        self.guider, self.sigmas, self.model_options, self.progress = guider, sigmas, model_options, progress
        self.with_gradients = with_gradients  # whether any pass may be differentiated through
        self.checkpoint = checkpoint  # whether passes with gradients recompute their activations
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
        self, x: Tensor, sigma: Tensor, positive: Entries, negative: Entries | None = None, cfg: float = 1.0,
        hold: Entries | None = None, branch: Branch = Branch.SAMPLER, together: Evaluate | None = None,
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
        options = self.model_options if branch is Branch.SAMPLER else marked(self.model_options, branch)
        if wants_negative(options):
            negative = positive if negative is None else negative
        elif cfg == 1 and branch is Branch.SOURCE:
            negative = None  # which this pack's own patches ask for at cfg 1, too, but they keep still here
        if hold is not None and cfg != 1 and together is None and _EVALUATE not in options:
            together = partial(self._predict, held=hold, place=0 if hold is positive else 1)
        options = options if together is None else {**options, _EVALUATE: together}
        positive, negative = read_at(positive, sigma), read_at(negative, sigma)
        guided = self._guided_with_gradient if torch.is_grad_enabled() else self._guided
        denoised = guided(x, sigma, positive, negative, cfg, options)
        if branch is Branch.EDIT or not self._shows_edit:
            self.denoised, self._shows_edit = denoised.detach(), branch is Branch.EDIT
        return denoised

    def _guided(
        self, x: Tensor, sigma: Tensor, positive: Entries, negative: Entries | None, cfg: float, options: dict
    ) -> Tensor:
        """The guider's answer, by the quicker kind of tensors where no gradient is taken during the whole walk."""
        self.guider.conds = {**self.guider.conds, "positive": positive, "negative": negative}
        self.guider.cfg = cfg
        slower = self.with_gradients or torch.is_grad_enabled()
        with nullcontext() if slower else torch.inference_mode():
            denoised = self.guider(x, sigma.to(x.dtype).expand(len(x)), model_options=options, seed=0)
        return denoised.clone() if denoised.is_inference() else denoised

    def _guided_with_gradient(
        self, x: Tensor, sigma: Tensor, positive: Entries, negative: Entries | None, cfg: float, options: dict
    ) -> Tensor:
        """The guider's answer, through which autograd finds its way back."""
        options, scale = differentiable(options), gradients.BackwardScale()
        if self.half:
            positive, negative = _in_range(positive, scale), _in_range(negative, scale)
            x = scale.leave(x) if x.requires_grad else x
        denoised = self._differentiable(lambda: self._guided(x, sigma, positive, negative, cfg, options))
        return scale.enter(denoised) if self.half else denoised

    @cached_property
    def _differentiable(self) -> gradients.Differentiable:
        return gradients.Differentiable(self.guider.inner_model.diffusion_model, self.checkpoint)

    def denoise_pair(self, source: Asked, edit: Asked, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The predictions of two sides at one level, both [B, C, H, W]: the same as two calls of `denoise`.

        It is one call of the network where nothing on the model or in the prompts could tell the difference. Where both
        sides ask for the same they get the same to the last bit, which rows of a batch need not.
        """
        prompts = [source.positive, source.negative, edit.positive, edit.negative]
        if not self.is_plain or not can_share(prompts):
            return self.asked(source, sigma), self.asked(edit, sigma)
        if source.same_as(edit):
            return (self.asked(source, sigma),) * 2
        beside = [read_at(source.positive, sigma)] + [read_at(source.negative, sigma)] * (source.cfg != 1)
        seen = []

        def together(args: dict) -> list[Tensor]:
            own = len(args["conds"])
            options = with_own_latents(args["model_options"], {own + k: source.x for k in range(len(beside))})
            found = comfy.samplers.calc_cond_batch(
                args["model"], [*args["conds"], *beside], args["input"], args["sigma"], options
            )
            seen.extend(found[own:])
            return found[:own]

        edited = self.asked(edit, sigma, together)
        kept = seen[0].clone() if source.cfg == 1 else seen[1] + source.cfg * (seen[0] - seen[1])
        return kept, edited

    def asked(self, one: Asked, sigma: Tensor, together: Evaluate | None = None) -> Tensor:
        """`denoise` for what is asked."""
        return self.denoise(one.x, sigma, *one[1:4], branch=one.branch, together=together)

    @cached_property
    def is_plain(self) -> bool:
        """Whether the model has no patches and wrappers but ours that count: none that may tell branches apart."""
        options = self.model_options.get("transformer_options", {})
        patched = set(self.model_options) - {"transformer_options", "to_load_options"} or any(
            options.get(name) for name in ("patches", "patches_replace", "optimized_attention_override")
        )
        wrappers = {key for keys in options.get("wrappers", {}).values() for key in keys}
        return not patched and wrappers <= {COUNT}

    def _predict(self, args: dict, held: Entries, place: int) -> list[Tensor]:
        """The predictions of both prompts, one at a time; that of `held`, which is at this place, from memory if it is
        there, comes first.

        That order matters to prompts with LoRA hooks: the weights that the backward pass needs are the last used.
        """
        x, sigma = args["input"], args["sigma"]

        def predict(conds: Entries | None) -> Tensor:
            model, options = args["model"], args["model_options"]
            return comfy.samplers.calc_cond_batch(model, [conds], x, sigma, options)[0]

        known = self._held
        if known.x is not x or known.prompt is not held or known.sigma != float(sigma[0]):
            with torch.no_grad():
                known = self._held = Held(x, held, float(sigma[0]), predict(args["conds"][place]))
        return [known.denoised if k == place else predict(conds) for k, conds in enumerate(args["conds"])]


def _in_range(prompt: Entries | None, scale: gradients.BackwardScale) -> Entries | None:
    """The prompt with its backward scaled; a prompt that takes no gradient is left as it is."""
    if prompt is None or not any(entry["model_conds"]["c_crossattn"].cond.requires_grad for entry in prompt):
        return prompt
    texts = {}
    for entry in prompt:
        text = entry["model_conds"]["c_crossattn"]
        if id(text) not in texts:
            texts[id(text)] = type(text)(scale.leave(text.cond))
    return [reading(entry, texts[id(entry["model_conds"]["c_crossattn"])]) for entry in prompt]
