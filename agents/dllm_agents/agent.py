"""A learned policy as an agent: observations in, actions out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dllm_agents.distributions import (
    adjust_logits,
    bernoulli_mode,
    sample_bernoulli,
    sample_dpls,
    with_argmax_fallback,
)
from dllm_agents.harm import HarmScale, harm_logits, within_budget
from dllm_agents.networks import Observation, UnmaskTransformer
from dllm_gym.files import is_finite

DECODINGS = ("sample", "deterministic", "bernoulli", "dpls")
KNOBS = ("alpha", "target_steps")
_NEUTRAL = {"temperature": 1, "beta": 1, "caution": 0}  # options that change nothing


class LearnedPolicy:
    """Acts with an ``UnmaskTransformer``.

    Each row of the batch has its own random generator, so its draws depend neither on its neighbours nor
    on the batch size.

    Args:
        network: The policy network; it is used as it is, so its current weights count.
        decoding: ``"sample"`` draws from the masked Bernoulli, and takes the largest logit if nothing was
            drawn (the paper's Bernoulli-argmax); ``"deterministic"`` reveals what has probability > 0.5,
            with the same fallback; ``"bernoulli"`` draws without a fallback, so that a step may reveal
            nothing (make the environment with ``on_empty="noop"`` to let it); ``"dpls"`` draws from Dynamic
            Plackett-Luce, which always reveals something.
        temperature: The policy's own (not the dLLM's): logits are divided by it.
        beta: Reveal probabilities are multiplied by it, up to 1 (paper, "beta scaling"); 1 for ``dpls``.
        caution: Taken off every logit of a reveal, in nats: the odds are divided by its exponential. A
            deterministic policy then reveals what has probability > 1 / (1 + exp(-caution)), such as 0.88
            for 2: slower, and up to a point more accurate. Below 0 it is bold.
        budget: For success models, instead of a decoding: each step reveals the largest set that costs at
            most so much of -log P(success) (``dllm_agents.harm``), such as 0.02.
        harm: How a success model's logits read as harm.
        knobs: Values a conditioned policy is told instead of the environment's, such as
            ``{"target_steps": 8}``; names out of ``KNOBS``.
        ranges: What it was told in training, lowest and highest, by knob. It is not asked to extrapolate.
        trained_in: The arguments of ``UnmaskEnv`` it was trained with, if they are known.
        name: Shown in tables and plots.
        seed: Row r draws from ``default_rng([seed, r])`` unless ``seed(rows, seeds)`` says otherwise.

    Attributes:
        label: Name and decoding, for legends.
        parameters: What distinguishes this agent from others of the same name, JSON-able.
        requires: The observation keys ``act`` reads.
        trained_in: As given; whoever decodes with it elsewhere is warned.

    Raises:
        ValueError: For an unknown decoding, a temperature, beta or budget that is not positive, a beta with
            ``dpls``, a budget for what is no success model or together with options of other decodings, or a
            knob the network does not read or was not trained at.
    """

    def __init__(
        self,
        network: UnmaskTransformer,
        *,
        decoding: str = "sample",
        temperature: float = 1.0,
        beta: float = 1.0,
        caution: float = 0.0,
        budget: float | None = None,
        harm: HarmScale | None = None,
        knobs: Mapping[str, float] | None = None,
        ranges: Mapping[str, tuple[float, float]] | None = None,
        trained_in: Mapping[str, Any] | None = None,
        name: str = "policy",
        seed: int = 0,
    ) -> None:
        if decoding not in DECODINGS:
            raise ValueError(f"unknown decoding {decoding!r}; known: {', '.join(DECODINGS)}")
        for parameter, value in (("temperature", temperature), ("beta", beta)):
            if not value > 0:
                raise ValueError(f"{parameter} must be above 0, got {value!r}")
        if not math.isfinite(caution):
            raise ValueError(f"caution must be a finite number, got {caution!r}")
        options: dict[str, Any] = {"temperature": temperature, "beta": beta, "caution": caution}
        self._options = {"decoding": decoding, "budget": budget, **options}
        if budget is not None:
            _check_budget(name, budget, harm, options)
            decoding = "budget"
        self.budget, self.harm = budget, harm
        if decoding == "dpls" and beta != 1:
            raise ValueError(f"beta scales reveal probabilities, which dpls has none of; got beta {beta}")
        self.knobs = dict(knobs or {})
        for knob in self.knobs:
            if knob not in KNOBS or knob not in network.config.requires:
                readable = ", ".join(key for key in KNOBS if key in network.config.requires) or "none"
                raise ValueError(f"{name} has no knob {knob!r}; it has {readable}")
        self._ranges = dict(ranges or {})
        self.trained_in = dict(trained_in or {})
        self.name = name
        for knob, value in self.knobs.items():
            self._check_trained(knob, value, value)
        self.network = network
        self.decoding, self.temperature, self.beta, self.caution = decoding, temperature, beta, caution
        self.parameters: dict[str, Any] = {"decoding": decoding}
        self.parameters |= {key: value for key, value in options.items() if value != _NEUTRAL[key]}
        self.parameters |= {} if budget is None else {"budget": budget}
        self.parameters |= self.knobs
        shown = [f"{key}={value:g}" for key, value in self.parameters.items() if key != "decoding"]
        self.label = f"{name} ({', '.join([*([decoding] if budget is None else []), *shown])})"
        needed = (*network.config.requires, "action_mask")
        self.requires = tuple(key for key in dict.fromkeys(needed) if key not in self.knobs)
        self._seed = seed
        self._generators: dict[int, np.random.Generator] = {}

    @property
    def takes_back(self) -> bool:
        """Whether it takes tokens back; of a success model with a budget only what it reveals counts."""
        return self.network.keep_proj is not None and self.budget is None

    @property
    def fingerprint(self) -> str:
        """What tells this policy from every other one, its weights included, for results that are kept."""
        digest = hashlib.sha256(repr((self.network.config, self.parameters)).encode())
        for name, tensor in self.network.state_dict().items():
            digest.update(name.encode() + tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def with_options(self, **options: Any) -> LearnedPolicy:
        """The same network with other options.

        Args:
            **options: ``decoding``, ``temperature``, ``beta``, ``caution``, ``budget`` and the knobs, see
                above. What is not given stays as it is.

        Raises:
            ValueError: For others, for a value that is no finite number, and for what is refused above.
        """
        known = (*self._options, *KNOBS)
        for option, value in options.items():
            if option not in known:
                raise ValueError(f"{self.name} has no option {option!r}; it has {', '.join(known)}")
            if option != "decoding" and not is_finite(value) and not (option == "budget" and value is None):
                raise ValueError(f"{option} must be a finite number, got {value!r}")
        told = {**self._options, **self.knobs, **options}
        knobs = {knob: told.pop(knob) for knob in KNOBS if knob in told}
        return LearnedPolicy(
            self.network,
            **told,
            harm=self.harm,
            knobs=knobs,
            ranges=self._ranges,
            trained_in=self.trained_in,
            name=self.name,
            seed=self._seed,
        )

    def seed(self, rows: Sequence[int], seeds: Sequence[int | Sequence[int]]) -> None:
        """Gives each of ``rows`` a fresh generator from the seed at the same place in ``seeds``."""
        for row, seed in zip(rows, seeds, strict=True):
            self._generators[int(row)] = np.random.default_rng(seed)

    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.int8]:
        """Actions, int8, for a batch ``(B, L)`` or a single observation ``(L,)``.

        Rows without a candidate cost nothing.

        Raises:
            ValueError: If an observation key is missing, the environment sets a knob to what the policy was
                not trained at, or the network returns NaN.
        """
        missing = [key for key in self.requires if key not in observation]
        if missing:
            raise ValueError(f"the observation lacks {missing}; the policy reads {', '.join(self.requires)}")
        # where tokens can be taken back ``written`` is observed; a policy that only reveals lets them stand
        masked = "mask" if "written" in observation else "action_mask"
        arrays = {key: np.asarray(observation[key]) for key in {*self.requires, masked}}
        single = arrays["action_mask"].ndim == 1
        if single:
            arrays = {key: array[None] for key, array in arrays.items()}
        actions = np.zeros(arrays["action_mask"].shape, dtype=np.int8)
        rows = np.flatnonzero(arrays["action_mask"].any(axis=1))
        if len(rows):
            arrays = {key: array[rows] for key, array in arrays.items()}
            actions[rows] = self._decide(arrays, arrays[masked], rows)
        return actions[0] if single else actions

    @torch.inference_mode()
    def _decide(
        self, arrays: Mapping[str, NDArray[Any]], masked: NDArray[Any], rows: NDArray[np.int64]
    ) -> NDArray[np.int8]:
        """Actions ``(R, L)`` of ``rows``, from what these alone observe."""
        device = self.network.output_proj.weight.device
        inputs = {key: torch.tensor(array, device=device) for key, array in arrays.items()}
        mask = torch.tensor(masked, device=device)
        action_mask = inputs["action_mask"]
        for key in self._ranges.keys() & inputs.keys():
            self._check_trained(key, float(inputs[key].min()), float(inputs[key].max()))
        for key, value in self.knobs.items():
            inputs[key] = torch.full((len(action_mask), 1), value, device=device)
        candidates = action_mask if self.takes_back else action_mask * (mask != 0)
        with torch.autocast(device.type, enabled=False):  # whatever the dLLM is computed in
            logits = adjusted(
                self.network, {**inputs, "action_mask": candidates}, self.temperature, self.beta, self.caution
            )
        if logits.isnan().any():
            raise ValueError(
                "the policy network returned NaN logits; its weights or its observation are broken"
            )
        if self.budget is not None and self.harm is not None:
            actions = within_budget(harm_logits(logits, self.harm), candidates, self.budget)
        else:
            actions = self._choose(logits, candidates, mask, rows)
        actions = torch.where((action_mask != 0) & (candidates == 0), 1, actions)
        array: NDArray[np.int8] = actions.cpu().numpy()
        return array

    def _check_trained(self, knob: str, least: float, most: float) -> None:
        low, high = self._ranges.get(knob, (least, most))
        slack = 1e-5 * high  # observations are float32
        if least < low - slack or most > high + slack:
            told = f"{least:g}" if least == most else f"{least:g} to {most:g}"
            raise ValueError(
                f"{self.name} was trained to be told {low:g} to {high:g} {knob}, not {told}: "
                f"choose a number, such as {knob}={(low * high) ** 0.5:.0f}"
            )

    def _choose(
        self,
        logits: torch.Tensor,
        action_mask: torch.Tensor,
        mask: torch.Tensor,
        rows: NDArray[np.int64],
    ) -> torch.Tensor:
        if self.decoding == "deterministic":
            return bernoulli_mode(logits, action_mask, mask)
        uniforms = torch.as_tensor(self._uniforms(action_mask.cpu().numpy(), rows), device=logits.device)
        if self.decoding == "dpls":
            return (sample_dpls(logits, action_mask, uniforms=uniforms) != 0).to(torch.int8)
        actions = sample_bernoulli(logits, action_mask, uniforms=uniforms)
        if self.decoding == "sample":
            actions = with_argmax_fallback(actions, logits, action_mask, mask)
        return actions

    def _uniforms(self, action_mask: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Numbers in [0, 1) from the generators of rows with candidates; dpls needs one more, for STOP."""
        length = action_mask.shape[1]
        uniforms = np.zeros((len(rows), length + (self.decoding == "dpls")), dtype=np.float32)
        for at in np.flatnonzero(action_mask.any(axis=1)).tolist():
            row = int(rows[at])
            generator = self._generators.get(row)
            if generator is None:
                generator = self._generators[row] = np.random.default_rng([self._seed, row])
            generator.random(dtype=np.float32, out=uniforms[at])
        return uniforms


def adjusted(
    network: UnmaskTransformer, observation: Observation, temperature: float, beta: float, caution: float
) -> torch.Tensor:
    """A network's logits ``(B, L)`` as ``LearnedPolicy`` decides by them: ``adjust_logits`` of its arguments.

    Where positions give way to each other, caution comes before that: who is held back is in nobody's way.
    """
    if network.rivalry is not None:
        return adjust_logits(network(observation, -caution * temperature), temperature, beta)
    mask = observation["mask"] if network.keep_proj is not None else None
    return adjust_logits(network(observation), temperature, beta, mask, caution)


def _check_budget(name: str, budget: float, harm: HarmScale | None, options: Mapping[str, float]) -> None:
    if harm is None:
        raise ValueError(f"{name} has no budget: it is no success model (dllm-gym train success)")
    if not (math.isfinite(budget) and budget > 0):
        raise ValueError(f"budget must be positive and finite, such as 0.02, got {budget!r}")
    for option, value in options.items():
        if value != _NEUTRAL[option]:
            raise ValueError(f"a budget takes no {option}, got {value!r}")
