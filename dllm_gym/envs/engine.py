"""The engine: canvas, backend and task of a batch of episodes, driven in one forward per step.

Both environments are thin shells around it, and everything else drives the environments, so this is
the only decode loop there is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dllm_gym.backends import Backend, backend_names, load_backend
from dllm_gym.backends.base import STATISTICS, Memory
from dllm_gym.envs.canvas import BoolArray, Canvas, IntArray
from dllm_gym.envs.rendering import Frame
from dllm_gym.envs.rewards import Reward, find_reward
from dllm_gym.tasks import Problem, Task, load_task
from dllm_gym.trained import warn_if_untrained

Observation = dict[str, NDArray[Any]]

ON_EMPTY = ("best", "noop")
REVEALED_CONFIDENCE = ("one", "model")
VIEWS = ("completion", "block")
ALWAYS_OBSERVED = ("confidence", "mask", "action_mask", "progress")
OBSERVE = (*STATISTICS, "tokens", "alpha", "target_steps")
_ENDLESS = 2**31 - 1  # indices are drawn below this where a task has no end of problems
_STATE = ("indices", "empty_actions", "ignored_actions", "alphas", "targets", "_tokens")
_AT_REVEALED = {"confidence": 1.0, "entropy": 0.0, "margin": 1.0, "top_k": 0.0, "hidden": 0.0}


class Engine:
    """N episodes of one task on one frozen dLLM.

    The arguments are those of ``UnmaskEnv``, which documents them.

    Attributes:
        problem_rngs: Per row, the generator that draws problems.
        noise_rngs: Per row, the generator that token noise is seeded from.
        draw_problem: Gives the index of the next problem for a row; replace it to hand out problems in
            another way.
        draw_knobs: Gives two numbers in [0, 1) for a row: where in their ranges alpha and target_steps of
            its episode lie. Asked after ``draw_problem``, and only if there is a range.
        indices: ``(N,)`` int64, the problem each row is at.
        alphas: ``(N,)`` float64, alpha of each row's episode.
        targets: ``(N,)`` float64, target_steps of each row's episode.
        end_token_ids: The tokens that end a completion.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        backend: str | Backend | None = None,
        backend_kwargs: Mapping[str, Any] | None = None,
        task: str | Task = "arithmetic",
        task_kwargs: Mapping[str, Any] | None = None,
        split: str = "train",
        completion_length: int | None = None,
        block_length: int | None = None,
        alpha: float | Sequence[float] = 1.0,
        target_steps: float | Sequence[float] = 1.0,
        reward: str | Reward = "multiplicative",
        reward_metric: str | None = None,
        on_empty: str = "best",
        temperature: float = 0.0,
        observe: Sequence[str] = (),
        top_k: int = 8,
        revealed_confidence: str = "one",
        view: str = "completion",
        stop_at_eos: bool = False,
        group_size: int = 1,
    ) -> None:
        self.num_rows = num_rows
        self.backend_kwargs, self.task_kwargs = dict(backend_kwargs or {}), dict(task_kwargs or {})
        self.task = load_task(task, split=split, **self.task_kwargs) if isinstance(task, str) else task
        if backend is None:
            backend = _embedded(self.task.name)
        self.backend_name = backend if isinstance(backend, str) else type(backend).__name__
        self.backend = load_backend(backend, **self.backend_kwargs) if isinstance(backend, str) else backend
        if isinstance(task, str) and isinstance(backend, str):
            warn_if_untrained(backend, self.task)
        length = self.task.completion_length if completion_length is None else completion_length
        self.length = _positive("completion_length", length)
        if self.length < (shortest := getattr(self.task, "shortest_completion", 1)):
            raise ValueError(
                f"completion_length {length} is too short for task {self.task.name!r}: "
                f"no right answer has fewer than {shortest} tokens"
            )
        attention_block = getattr(self.backend, "attention_block", None)
        self.block_length = _block_length(block_length, self.length, attention_block)
        self.alpha = _number_or_range("alpha", alpha, 0.0)
        self.target_steps = _number_or_range("target_steps", target_steps, 1.0)
        self.temperature = _not_negative("temperature", temperature)
        self.on_empty = _one_of("on_empty", on_empty, ON_EMPTY)
        self.reward, self._price = find_reward(reward, self.length, self.alpha)
        self.metric_names = tuple(self.task.metrics("", self.task.problem(0)))
        if reward_metric is not None:
            _one_of("reward_metric", reward_metric, self.metric_names)
        self.reward_metric = reward_metric
        self.observe = _observation_keys(observe)
        self.top_k = _positive("top_k", top_k)
        if "top_k" in self.observe and self.top_k > self.backend.vocab_size:
            vocabulary = self.backend.vocab_size
            raise ValueError(f"top_k {self.top_k} exceeds the dLLM's vocabulary of {vocabulary} tokens")
        if "hidden" in self.observe and not hasattr(self.backend, "hidden_width"):
            raise ValueError(
                f"observation 'hidden' needs a dLLM that shows its hidden states; "
                f"{type(self.backend).__name__} has no attribute hidden_width"
            )
        sizes = {"top_k": (self.top_k,), "hidden": (getattr(self.backend, "hidden_width", 0),)}
        self.revealed_confidence = _one_of("revealed_confidence", revealed_confidence, REVEALED_CONFIDENCE)
        self.view = _one_of("view", view, VIEWS)
        self.group_size = _positive("group_size", group_size)
        if num_rows % self.group_size:
            raise ValueError(f"group_size {group_size} must divide the number of environments, {num_rows}")
        self.stop_at_eos = stop_at_eos
        remember = getattr(self.backend, "memory", None)
        self._memory: Memory | None = None if remember is None else remember(num_rows, self.length)
        self.end_token_ids = _end_tokens(self.backend)
        self._statistics = tuple(name for name in self.observe if name in STATISTICS)
        self.canvas = Canvas(
            num_rows,
            self.length,
            self.block_length,
            self.backend.mask_token_id,
            self.backend.pad_token_id,
            self.end_token_ids if stop_at_eos else None,
            attention_block is not None and self.backend.blocks_from == "sequence",  # type: ignore[attr-defined]
        )
        self.observation_space = self._make_observation_space()
        self.action_space = spaces.MultiBinary(self.length)
        self.indices: IntArray = np.zeros(num_rows, dtype=np.int64)
        self.problems: list[Problem | None] = [None] * num_rows
        self.empty_actions: IntArray = np.zeros(num_rows, dtype=np.int64)
        self.ignored_actions: IntArray = np.zeros(num_rows, dtype=np.int64)
        self.problem_rngs = [np.random.default_rng(row) for row in range(num_rows)]
        self.noise_rngs = [np.random.default_rng([row, 1]) for row in range(num_rows)]
        self.alphas = np.full(num_rows, self.alpha[0])
        self.targets = np.full(num_rows, self.target_steps[0])
        self._has_range = any(low < high for low, high in (self.alpha, self.target_steps))
        # the rows of a group are given the same problem one soon after the other
        self._draw = lru_cache(maxsize=256)(self._problem_and_prompt)
        self.draw_problem: Callable[[int], int] = self._draw_from_row_generator
        self.draw_knobs: Callable[[int], NDArray[np.float64]] = lambda row: self.problem_rngs[row].random(2)
        self._token_generators: list[Any] = [None] * num_rows
        self._tokens: IntArray = np.zeros((num_rows, self.length), dtype=np.int64)
        self._predicted: Observation = {"confidence": np.zeros((num_rows, self.length), dtype=np.float32)}
        for name in self._statistics:
            shape = (num_rows, self.length, *sizes.get(name, ()))
            self._predicted[name] = np.zeros(shape, dtype=np.float32)

    # Episodes

    def start(self, rows: IntArray, problems: Sequence[int] | None = None) -> None:
        """Starts episodes, on the given problems or on the ones ``draw_problem`` says.

        Raises:
            ValueError: If a problem index is outside the task; then no episode is started.
        """
        if problems is None:
            problems = [self.draw_problem(row) for row in rows.tolist()]
        indices = [int(index) for index in problems]
        drawn = [self._draw(index) for index in indices]
        if self._memory is not None:
            self._memory.forget(rows)
        self.indices[rows] = indices
        self.empty_actions[rows] = self.ignored_actions[rows] = 0
        self.canvas.start(rows, [prompt for _, prompt in drawn])
        for row, (problem, _) in zip(rows.tolist(), drawn, strict=True):
            self.problems[row] = problem
            if self._has_range:
                alpha, target = self.draw_knobs(row)
                self.alphas[row] = _log_uniform(self.alpha, alpha)
                self.targets[row] = _log_uniform(self.target_steps, target)
            if self.temperature > 0:
                self._token_generators[row] = _torch_generator(self.noise_rngs[row], self.backend.device)

    def _problem_and_prompt(self, index: int) -> tuple[Problem, list[int]]:
        try:
            problem = self.task.problem(index)
        except IndexError as error:
            raise ValueError(str(error)) from None
        return problem, self.encode(problem)

    def prompt(self, index: int) -> list[int]:
        """Token ids of what stands before the completion of a problem.

        Raises:
            ValueError: If the task has no such problem, and for what ``encode`` refuses.
        """
        return self._draw(int(index))[1]

    def encode(self, problem: Problem) -> list[int]:
        """Token ids of what stands before a completion: the prompt, and the beginning given to the answer.

        Raises:
            ValueError: If the dLLM has no such tokens, or its mask token is among them.
        """
        ids = self.backend.encode_prompt(problem.prompt)
        if problem.prefix:
            ids = [*ids, *self.backend.tokenizer.encode(problem.prefix, add_special_tokens=False)]
        foreign = sorted({i for i in ids if not 0 <= i < self.backend.vocab_size})
        if foreign:
            raise ValueError(
                f"the tokenizer makes the ids {foreign} of {problem.prompt!r}, "
                f"the dLLM has tokens 0 to {self.backend.vocab_size - 1}: they do not belong together"
            )
        if self.backend.mask_token_id in ids:
            raise ValueError(f"the prompt {problem.prompt!r} contains the dLLM's mask token")
        return ids

    def state(self) -> dict[str, Any] | None:
        """Everything about the episodes in flight: arrays and plain values.

        ``None`` where the dLLM remembers earlier steps (``cache``, ``residual_context``): too much to keep.
        """
        if self._memory is not None:
            return None
        return {
            "canvas": self.canvas.state(),
            "predicted": {name: values.copy() for name, values in self._predicted.items()},
            "rows": {name: getattr(self, name).copy() for name in _STATE},
            "problem_rngs": [rng.bit_generator.state for rng in self.problem_rngs],
            "noise_rngs": [rng.bit_generator.state for rng in self.noise_rngs],
            "token_rngs": [None if g is None else g.get_state().numpy() for g in self._token_generators],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state`` was taken, in an engine made with the same arguments."""
        self.canvas.restore(state["canvas"])
        self._predicted = {name: values.copy() for name, values in state["predicted"].items()}
        for name in _STATE:
            setattr(self, name, state["rows"][name].copy())
        self.problems = [self._draw(index)[0] for index in self.indices.tolist()]
        for rngs, saved in ((self.problem_rngs, "problem_rngs"), (self.noise_rngs, "noise_rngs")):
            for row, own in enumerate(state[saved]):
                rngs[row].bit_generator.state = own
        for row, own in enumerate(state["token_rngs"]):
            if own is not None:
                self._token_generators[row] = _restored_generator(own, self.backend.device)

    def _draw_from_row_generator(self, row: int) -> int:
        return int(self.problem_rngs[row].integers(self.task.num_problems or _ENDLESS))

    def act(self, rows: IntArray, actions: NDArray[Any]) -> BoolArray:
        """Applies actions ``(R, L)`` to some rows; says which of these rows changed."""
        candidates = self.canvas.selectable()[rows]
        wanted = actions.astype(bool)
        selected = wanted & candidates
        self.ignored_actions[rows] += (wanted ^ selected).sum(axis=1)
        changed: BoolArray = np.any(selected, axis=1)
        self.empty_actions[rows] += ~changed
        if self.on_empty == "best" and not changed.all():
            select_best_where_empty(selected, candidates, self._predicted["confidence"][rows])
            changed = np.any(selected, axis=1)
        self.canvas.apply(rows, selected, self._tokens[rows])
        return changed

    def predict(self, rows: IntArray) -> None:
        """One forward of the dLLM over ``rows``."""
        if not len(rows):
            return
        import torch

        tokens, attention_mask = self.canvas.model_input(rows)
        on_canvas = torch.from_numpy(tokens), torch.from_numpy(attention_mask)
        options: dict[str, Any] = {
            "statistics": self._statistics,
            "top_k": self.top_k,
            "temperature": self.temperature,
            "generators": [self._token_generators[row] for row in rows] if self.temperature > 0 else None,
        }
        if self._memory is None:
            positions = slice(tokens.shape[1] - self.length, None)
            prediction = self.backend.predict(*on_canvas, positions, **options)
        else:
            windows = self.canvas.active_window(rows)
            prediction = self._memory.predict(rows, windows, *on_canvas, **options)
        tokens, confidence = prediction.tokens.cpu().numpy(), prediction.confidence.cpu().numpy()
        self._check(tokens, confidence)
        self._tokens[rows], self._predicted["confidence"][rows] = tokens, confidence
        for name in self._statistics:
            self._predicted[name][rows] = prediction.statistics[name].cpu().numpy()

    def _check(self, tokens: IntArray, confidence: NDArray[np.float32]) -> None:
        """Refuses what no dLLM predicts; a backend may be anybody's."""
        mask, size = self.backend.mask_token_id, self.backend.vocab_size
        if tokens.min() < 0 or tokens.max() >= size or (tokens == mask).any():
            raise ValueError(
                f"the dLLM predicted tokens from {tokens.min()} to {tokens.max()}: possible are 0 to "
                f"{size - 1} without its mask token {mask}"
            )
        if not (confidence.min() >= 0 and confidence.max() <= 1):  # NaN is neither
            raise ValueError(
                f"the dLLM's confidence must be 0 to 1, got {confidence.min()} to {confidence.max()}"
            )

    # What the outside sees

    @property
    def confidence(self) -> NDArray[np.float32]:
        """``(N, L)``: the dLLM's confidence in what it last predicted, at revealed positions too."""
        return self._predicted["confidence"]

    def observation(self) -> Observation:
        """The observation of all rows, batched, in fresh arrays."""
        masked = self.canvas.masked
        shown = masked if self.revealed_confidence == "one" else np.ones_like(masked)
        if self.view == "block":
            inside = self.canvas.in_active_block()
            masked, shown = masked & inside, shown & inside
        observation: Observation = {
            "action_mask": self.canvas.selectable().astype(np.int8),
            "mask": masked.astype(np.int8),
            "progress": (self.canvas.steps[:, None] / self.length).astype(np.float32),
            **hide_revealed(self._predicted, shown),
        }
        if "tokens" in self.observe:
            observation["tokens"] = self.canvas.completions()
        if "alpha" in self.observe:
            observation["alpha"] = self.alphas[:, None].astype(np.float32)
        if "target_steps" in self.observe:
            observation["target_steps"] = self.targets[:, None].astype(np.float32)
        return observation

    def outcomes(self, rows: IntArray) -> list[tuple[float, dict[str, Any]]]:
        """Rewards and infos of episodes that have ended."""
        completions = [self.backend.decode(ids) for ids in self.canvas.completions(rows).tolist()]
        if hasattr(self.task, "prepare"):
            finished = [problem for row in rows if (problem := self.problems[row]) is not None]
            self.task.prepare(completions, finished)
        return list(map(self._outcome, rows.tolist(), completions))

    def _outcome(self, row: int, completion: str) -> tuple[float, dict[str, Any]]:
        problem = self.problems[row]
        assert problem is not None
        score = float(self.task.score(completion, problem))
        steps = int(self.canvas.steps[row])
        metrics = self.task.metrics(completion, problem)
        info = {
            "is_success": score >= 1.0,
            "score": score,
            "nfe": steps,
            "completion": completion,
            "problem": int(self.indices[row]),
            "empty_actions": int(self.empty_actions[row]),
            "ignored_actions": int(self.ignored_actions[row]),
            **metrics,
        }
        paid_for = score if self.reward_metric is None else metrics[self.reward_metric]
        target = self.targets[row]
        priced_steps = max(steps / target, target / steps)  # the default target, 1, leaves them as they are
        return float(self._price(paid_for, priced_steps, self.length, self.alphas[row])), info

    def description(self) -> dict[str, Any]:
        """Everything that determines an episode besides the agent, as JSON values."""
        return {
            "backend": self.backend_name,
            "backend_kwargs": _json_values(self.backend_kwargs),
            "task": self.task.name,
            "task_kwargs": _json_values(self.task_kwargs),
            "split": self.task.split,
            "completion_length": self.length,
            "block_length": self.block_length,
            "alpha": _shown(self.alpha),
            "target_steps": _shown(self.target_steps),
            "reward": self.reward,
            "reward_metric": self.reward_metric,
            "on_empty": self.on_empty,
            "temperature": self.temperature,
            "revealed_confidence": self.revealed_confidence,
            "view": self.view,
            "stop_at_eos": self.stop_at_eos,
        }

    def frame(self, row: int) -> Frame:
        """A row's state for the renderer."""
        problem = self.problems[row]
        if problem is None:
            raise RuntimeError("call reset before render")
        completion = self.canvas.completions(np.array([row]))[0].tolist()
        masked = self.canvas.masked[row].copy()
        finished = bool(self.canvas.finished()[row])
        return Frame(
            prompt=problem.prompt,
            tokens=[
                "" if m else self.backend.tokenizer.decode([t])
                for t, m in zip(completion, masked, strict=True)
            ],
            masked=masked,
            just_revealed=self.canvas.just_revealed[row].copy(),
            confidence=np.where(masked, self._predicted["confidence"][row], np.float32(1.0)),
            block_length=self.block_length,
            block_offset=int(self.canvas.block_offsets(np.array([row]))[0]),
            step=int(self.canvas.steps[row]),
            max_steps=self.length,
            score=self.task.score(self.backend.decode(completion), problem) if finished else None,
        )

    def _make_observation_space(self) -> spaces.Dict:
        length, vocabulary = self.length, self.backend.vocab_size
        optional: dict[str, spaces.Space[Any]] = {
            "entropy": spaces.Box(0.0, math.log(vocabulary) + 1e-3, (length,), np.float32),
            "margin": spaces.Box(0.0, 1.0, (length,), np.float32),
            "top_k": spaces.Box(0.0, 1.0, (length, self.top_k), np.float32),
            "tokens": spaces.Box(0, vocabulary - 1, (length,), np.int64),
            # any finite number; Gymnasium's checker warns of infinite bounds
            "alpha": spaces.Box(0.0, np.finfo(np.float32).max, (1,), np.float32),
            "target_steps": spaces.Box(1.0, np.finfo(np.float32).max, (1,), np.float32),
        }
        if "hidden" in self.observe:
            largest, width = np.finfo(np.float32).max, self.backend.hidden_width  # type: ignore[attr-defined]
            optional["hidden"] = spaces.Box(-largest, largest, (length, width), np.float32)
        return spaces.Dict(
            {
                "confidence": spaces.Box(0.0, 1.0, (length,), np.float32),
                "mask": spaces.MultiBinary(length),
                "action_mask": spaces.MultiBinary(length),
                "progress": spaces.Box(0.0, 1.0, (1,), np.float32),
                **{name: optional[name] for name in self.observe},
            }
        )


def hide_revealed(predicted: Mapping[str, NDArray[Any]], shown: BoolArray) -> Observation:
    """Confidence and further statistics as observed: certain wherever they are not ``shown``.

    Args:
        predicted: By name, ``(N, L)`` or ``(N, L, k)`` float32.
        shown: ``(N, L)``.
    """
    observation = {}
    for name, values in predicted.items():
        where = shown if values.ndim == 2 else shown[..., None]
        observation[name] = np.where(where, values, np.float32(_AT_REVEALED[name]))
    if "top_k" in observation:
        observation["top_k"][~shown, 0] = 1.0
    return observation


def select_best_where_empty(
    selected: BoolArray, candidates: BoolArray, confidence: NDArray[np.float32]
) -> None:
    """Where a row of ``(R, L)`` selects nothing, selects its most confident candidate, if any, in place."""
    empty = candidates.any(axis=1) & ~selected.any(axis=1)
    best = np.where(candidates[empty], confidence[empty], -1.0).argmax(axis=1)
    selected[np.flatnonzero(empty), best] = True


def _embedded(task: str) -> str:
    """The dLLM that comes with the package for a task."""
    name = f"tiny-{task}"
    if name not in backend_names():
        raise ValueError(
            f"no dLLM for task {task!r} comes with the package; give backend=..., a checkpoint directory or "
            f"a hub id such as GSAI-ML/LLaDA-8B-Instruct (registered: {', '.join(backend_names())})"
        )
    return name


def _block_length(given: int | None, length: int, attention_block: int | None) -> int:
    """The window of decoding: what the user says, as far as it fits how the dLLM attends."""
    if given is None:
        return attention_block or length
    given = _positive("block_length", given)
    if given > length:
        raise ValueError(f"block_length {given} exceeds completion_length {length}")
    if attention_block is not None and attention_block % given:
        fitting = [size for size in range(1, attention_block + 1) if attention_block % size == 0]
        raise ValueError(
            f"block_length {given} does not fit this dLLM, which attends in blocks of {attention_block} and "
            f"sees nothing behind the block it writes; choose one of {', '.join(map(str, fitting))}"
        )
    return given


def _end_tokens(backend: Backend) -> frozenset[int]:
    return getattr(backend, "end_token_ids", None) or frozenset([backend.eos_token_id])


def _json_values(kwargs: Mapping[str, Any]) -> Any:
    """The keywords as JSON has them: paths, devices and the like become text."""
    return json.loads(json.dumps(kwargs, default=str))


def _torch_generator(rng: np.random.Generator, device: Any) -> Any:
    import torch

    return torch.Generator(device=device).manual_seed(int(rng.integers(2**63)))


def _restored_generator(state: NDArray[np.uint8], device: Any) -> Any:
    import torch

    generator = torch.Generator(device=device)
    generator.set_state(torch.from_numpy(state))
    return generator


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _positive(name: str, value: Any) -> int:
    if not _is_number(value) or not float(value).is_integer() or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


def _not_negative(name: str, value: Any) -> float:
    if not (_is_number(value) and math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
    return float(value)


def _number_or_range(name: str, value: Any, minimum: float) -> tuple[float, float]:
    """A number as a range of one point; a pair (low, high) as it is."""
    pair = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    numbers = all(_is_number(v) and math.isfinite(v) and v >= minimum for v in pair)
    if not numbers or len(pair) != 2 or pair[0] > pair[1] or (pair[0] < pair[1] and pair[0] <= 0):
        raise ValueError(
            f"{name} must be a finite number of at least {minimum:g}, or a range (low, high) of such numbers "
            f"with 0 < low <= high, got {value!r}"
        )
    return float(pair[0]), float(pair[1])


def _log_uniform(ends: tuple[float, float], at: float) -> float:
    low, high = ends
    return low if low == high else low * (high / low) ** float(at)


def _shown(ends: tuple[float, float]) -> float | list[float]:
    return ends[0] if ends[0] == ends[1] else list(ends)


def _one_of(name: str, value: str, choices: Sequence[str] | Mapping[str, Any]) -> str:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")
    return value


def _observation_keys(observe: Sequence[str]) -> tuple[str, ...]:
    """The keys asked for besides those that are always there; naming one of the latter does no harm."""
    keys = (observe,) if isinstance(observe, str) else tuple(observe)
    for key in keys:
        _one_of("observation", key, (*ALWAYS_OBSERVED, *OBSERVE))
    return tuple(key for key in dict.fromkeys(keys) if key not in ALWAYS_OBSERVED)
