"""The engine: canvas, backend and task of a batch of episodes, driven in one forward per step.

Both environments are thin shells around it, and everything else drives the environments, so this is
the only decode loop there is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from inspect import signature
from typing import Any, Never

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from dllm_gym.backends import Backend, backend_names, load_backend
from dllm_gym.backends.base import Memory
from dllm_gym.envs import checks, moves
from dllm_gym.envs.blocks import BlockLength, Blocks
from dllm_gym.envs.canvas import Canvas
from dllm_gym.envs.checks import not_negative, one_of, positive
from dllm_gym.envs.observations import (
    REVEALED_CONFIDENCE,
    VIEWS,
    NotShown,
    Observation,
    check_shown,
    observation_keys,
    observation_space,
)
from dllm_gym.envs.problems import Problems
from dllm_gym.envs.rendering import Frame
from dllm_gym.envs.rewards import Prices, Reward
from dllm_gym.envs.rows import BoolArray, IntArray, PerRow
from dllm_gym.envs.statistics import STATISTICS, Sizes, Statistics
from dllm_gym.tasks import Problem, Task, load_task
from dllm_gym.tasks.base import ENDLESS
from dllm_gym.trained import embedded_for, warn_if_untrained

ON_EMPTY = ("best", "noop")


class Engine(PerRow):
    """N episodes of one task on one frozen dLLM.

    The arguments are those of ``UnmaskEnv``, which documents them. All is decided when it is made but for
    the ``prices`` and the ``blocks``. Copies (``copy.deepcopy``) share dLLM and task: these never change.

    Attributes:
        prices: What steps cost: alpha, target_steps and the reward.
        blocks: The block lengths there are for episodes; ``canvas`` has that of each row.
        problem_rngs: Per row, the generator that draws problems.
        noise_rngs: Per row, the generator that token noise is seeded from.
        seeds: Per row, what these were seeded with; the environments write it down here.
        ended: ``(N,)`` bool, rows without a running episode; ``start`` lets them run, and whoever steps the
            engine says when they end.
        indices: ``(N,)`` int64, the problem each row is at.
        alphas: ``(N,)`` float64, alpha of each row's episode.
        targets: ``(N,)`` float64, target_steps of each row's episode.
        ahead: ``(N,)`` int64, forwards of each row's episode besides the one per step, see ``look_ahead``.
        end_token_ids: The tokens that end a completion.
    """

    per_row = (
        *("canvas", "indices", "empty_actions", "ignored_actions", "alphas", "targets", "ahead"),
        *("_tokens", "_predicted", "_sure", "problem_rngs", "noise_rngs", "_token_generators"),
        *("seeds", "ended"),
    )
    _made = False

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
        block_length: BlockLength = None,
        alpha: float | Sequence[float] = 1.0,
        target_steps: float | Sequence[float] = 1.0,
        reward: str | Reward = "multiplicative",
        reward_metric: str | None = None,
        actions: str = "reveal",
        on_empty: str = "best",
        max_steps: int | None = None,
        max_remasks: int | None = None,
        forbid_remask: bool = False,
        finish: str = "full",
        commit_drift: bool = False,
        temperature: float = 0.0,
        observe: Sequence[str] = (),
        top_k: int = 8,
        revealed_confidence: str = "one",
        view: str = "completion",
        stop_at_eos: bool = False,
        group_size: int = 1,
        **unknown: Never,
    ) -> None:
        checks.refuse_unknown(unknown, ARGUMENTS)
        self.num_rows = num_rows
        self.backend_kwargs, self.task_kwargs = dict(backend_kwargs or {}), dict(task_kwargs or {})
        self.task = load_task(task, split=split, **self.task_kwargs) if isinstance(task, str) else task
        self.task_name = task if isinstance(task, str) else self.task.name  # as it is registered
        if backend is None:
            backend = _embedded(self.task)
        self.backend_name = backend if isinstance(backend, str) else type(backend).__name__
        self.backend = load_backend(backend, **self.backend_kwargs) if isinstance(backend, str) else backend
        if isinstance(task, str) and isinstance(backend, str):
            warn_if_untrained(backend, self.task)
        length = self.task.completion_length if completion_length is None else completion_length
        self.length = positive("completion_length", length)
        if self.length < (shortest := getattr(self.task, "shortest_completion", 1)):
            raise ValueError(
                f"completion_length {length} is too short for task {self.task.name!r}: "
                f"no right answer has fewer than {shortest} tokens"
            )
        attention_block = getattr(self.backend, "attention_block", None)
        self.blocks = Blocks(block_length, self.length, attention_block)
        self.temperature = not_negative("temperature", temperature)
        self.on_empty = one_of("on_empty", on_empty, ON_EMPTY)
        self.moves = moves.Moves.checked(self.length, actions, max_steps, max_remasks, forbid_remask, finish)
        self.commit_drift = bool(commit_drift)
        self.prices = Prices(reward, self.length, alpha, target_steps)
        self.metric_names = tuple(self.task.metrics("", self.task.problem(0)))
        if reward_metric is not None:
            one_of("reward_metric", reward_metric, self.metric_names)
        self.reward_metric = reward_metric
        self.observe = observation_keys(observe)
        if self.moves.can_take_back and "written" not in self.observe:
            self.observe = (*self.observe, "written")  # what stands must be seen to be judged
        self.top_k = positive("top_k", top_k)
        if "top_k" in self.observe and self.top_k > self.backend.vocab_size:
            vocabulary = self.backend.vocab_size
            raise ValueError(f"top_k {self.top_k} exceeds the dLLM's vocabulary of {vocabulary} tokens")
        check_shown(self.observe, self.backend)
        sizes = Sizes(
            self.length,
            self.backend.vocab_size,
            self.backend.mask_token_id,
            self.top_k,
            getattr(self.backend, "hidden_width", 0),
            self.moves.max_steps,
        )
        self.revealed_confidence = one_of("revealed_confidence", revealed_confidence, REVEALED_CONFIDENCE)
        self.view = one_of("view", view, VIEWS)
        self.group_size = positive("group_size", group_size)
        if num_rows % self.group_size:
            raise ValueError(
                f"group_size {group_size} must divide the number of environments, {num_rows}: groups are "
                "rows of one batched environment, which gym.make_vec makes without a vectorization_mode"
            )
        self.stop_at_eos = stop_at_eos
        remember = getattr(self.backend, "memory", None)
        self._memory: Memory | None = None if remember is None else remember(num_rows, self.length)
        self.end_token_ids = _end_tokens(self.backend)
        self.canvas = Canvas(
            num_rows,
            self.length,
            self.blocks.choices[-1],
            self.backend.mask_token_id,
            self.backend.pad_token_id,
            self.end_token_ids if stop_at_eos else None,
            attention_block is not None and self.backend.blocks_from == "sequence",  # type: ignore[attr-defined]
            max_steps=self.moves.max_steps,
            remasks=self.moves.remasks,
            confirm=self.moves.finish == "confirm",
        )
        self.observation_space = observation_space(self.observe, sizes)
        self.action_space = spaces.MultiBinary(self.length)
        self.indices: IntArray = np.zeros(num_rows, dtype=np.int64)
        self.problems: list[Problem | None] = [None] * num_rows
        self._problems = Problems(self.task, self.backend)
        self.empty_actions: IntArray = np.zeros(num_rows, dtype=np.int64)
        self.ignored_actions: IntArray = np.zeros(num_rows, dtype=np.int64)
        self.problem_rngs = [np.random.default_rng(row) for row in range(num_rows)]
        self.noise_rngs = [np.random.default_rng([row, 1]) for row in range(num_rows)]
        self.seeds = [0] * num_rows
        self.ended: BoolArray = np.ones(num_rows, dtype=bool)
        self.alphas, self.targets = np.zeros(num_rows), np.ones(num_rows)
        self._token_generators = [
            torch.Generator(self.backend.device) if self.temperature > 0 else None for _ in range(num_rows)
        ]
        self._tokens: IntArray = np.zeros((num_rows, self.length), dtype=np.int64)
        observed = [name for name in self.observe if name in STATISTICS]
        self._predicted = Statistics(num_rows, sizes, observed, self.backend.device)
        self._sure = np.zeros((num_rows, self.length), dtype=np.float32)  # confidence when it was written
        self.ahead: IntArray = np.zeros(num_rows, dtype=np.int64)
        # by row, what was looked at from where it is, by the canvases on the way; no part of a state
        self._foreseen: list[dict[tuple[bytes, ...], dict[str, Any]]] = [{} for _ in range(num_rows)]
        self._made = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses what would look set: only properties and methods of the class can be after it is made."""
        if self._made and not name.startswith("_") and not hasattr(type(self), name):
            raise AttributeError(
                f"{name!r} of an engine cannot be set; what may change between episodes is "
                "prices.alpha, prices.target_steps and blocks.lengths"
            )
        super().__setattr__(name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        memo |= {id(shared): shared for shared in (self.backend, self.task)}
        copied: Engine = object.__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__ |= deepcopy(self.__dict__, memo)
        return copied

    # Episodes

    def draw_problem(self, row: int) -> int:
        """The index of the next problem for a row; replace it to hand out problems in another way."""
        return int(self.problem_rngs[row].integers(self.task.num_problems or ENDLESS))

    def draw_knobs(self, row: int) -> NDArray[np.float64]:
        """Three numbers in [0, 1) for a row: where in their ranges alpha, target_steps and block_length lie.

        They are those of the row's next episode, asked after ``draw_problem``, and only if there is a range.
        Replace it to draw in another way.
        """
        return self.problem_rngs[row].random(3)

    def start(
        self,
        rows: IntArray,
        problems: Sequence[int] | IntArray | None = None,
        alphas: NDArray[np.float64] | None = None,
        targets: NDArray[np.float64] | None = None,
        block_lengths: IntArray | None = None,
    ) -> None:
        """Starts episodes.

        Args:
            rows: ``(R,)``, where.
            problems: ``(R,)``; ``None`` takes those that ``draw_problem`` says.
            alphas: ``(R,)``, alpha of these episodes; ``None`` is what ``prices`` say.
            targets: ``(R,)``, likewise target_steps.
            block_lengths: ``(R,)``, likewise; ``None`` is what ``blocks`` say.

        Raises:
            ValueError: If a problem index is outside the task; then no episode is started.
        """
        if problems is None:
            problems = [self.draw_problem(row) for row in rows.tolist()]
        indices = [int(index) for index in problems]
        drawn = [self._problems.at(index) for index in indices]
        if self._memory is not None:
            self._memory.forget(rows)
        self._predicted.start(rows)
        self.indices[rows] = indices
        self.empty_actions[rows] = self.ignored_actions[rows] = 0
        self.ahead[rows] = 0 if self._memory is None else self._memory.first_forwards
        self._forget(rows)
        self.ended[rows] = False
        are_drawn = self.prices.are_drawn or len(self.blocks.choices) > 1
        in_blocks = []
        for row, (problem, _) in zip(rows.tolist(), drawn, strict=True):
            self.problems[row] = problem
            alpha, target, block = self.draw_knobs(row) if are_drawn else np.zeros(3)
            self.alphas[row], self.targets[row] = self.prices.at(alpha, target)
            in_blocks.append(self.blocks.at(block))
            if self.temperature > 0:
                seed = int(self.noise_rngs[row].integers(2**63))
                self._token_generators[row].manual_seed(seed)
        if alphas is not None:
            self.alphas[rows] = alphas
        if targets is not None:
            self.targets[rows] = targets
        self.canvas.start(
            rows, [prompt for _, prompt in drawn], in_blocks if block_lengths is None else block_lengths
        )

    def prompt(self, index: int) -> list[int]:
        """Token ids of what stands before the completion of a problem.

        Raises:
            ValueError: If the task has no such problem, and for what ``Problems.encode`` refuses.
        """
        return self._problems.at(int(index))[1]

    @property
    def remembers(self) -> bool:
        """Whether the dLLM remembers earlier steps (``cache``, ``residual_context``): too much to keep."""
        return self._memory is not None

    def state(self, rows: IntArray) -> dict[str, Any]:
        """Copies of all there is to the episodes of some rows ``(R,)``: arrays and plain values.

        Raises:
            RuntimeError: If the dLLM ``remembers``.
        """
        if self.remembers:
            raise RuntimeError(
                "there is no state where the dLLM remembers earlier steps (cache, residual_context); "
                "copy.deepcopy copies the whole environment"
            )
        return super().state(rows)

    def restore(self, state: Mapping[str, Any], rows: IntArray) -> None:
        """Makes some rows go on where those of ``state`` were, in an engine made with the same arguments.

        Args:
            state: Of as many rows, or of one, which all of them become.
            rows: ``(R,)``.

        Raises:
            ValueError: For a state that does not fit.
        """
        super().restore(state, rows)
        self._forget(rows)
        for row in rows.tolist():
            self.problems[row], _ = self._problems.at(int(self.indices[row]))

    @property
    def predicted_tokens(self) -> IntArray:
        """``(N, L)``, what the dLLM would write at every position now; agents do not see it."""
        return self._tokens

    def act(self, rows: IntArray, actions: BoolArray) -> BoolArray:
        """Applies actions ``(R, L)``, checked by ``as_bits``, to some rows; says which of these changed."""
        candidates, masked = self.canvas.selectable()[rows], self.canvas.masked[rows]
        wanted = actions & candidates
        self.ignored_actions[rows] += (actions ^ wanted).sum(axis=1)
        revealing, taking_back = wanted & masked, candidates & ~masked & ~wanted
        if self.moves.replaces:
            taking_back &= self._tokens[rows] != self.canvas.completions(rows)
        changed: BoolArray = np.any(revealing | taking_back, axis=1)
        self.empty_actions[rows] += ~changed
        confidence = self.confidence[rows]
        if self.on_empty == "best" and not changed.all():
            # a row that only takes back is not empty: it has no candidates here
            select_best_where_empty(revealing, candidates & masked & ~changed[:, None], confidence)
            changed |= np.any(revealing, axis=1)
        if not changed.all():
            self._predicted.repeat(rows[~changed])
        writing = revealing | taking_back if self.moves.replaces else revealing
        self._sure[rows] = np.where(writing, confidence, self._sure[rows])
        self.canvas.apply(rows, writing, self._tokens[rows], taking_back)
        return changed

    def predict(self, rows: IntArray) -> None:
        """One forward of the dLLM over ``rows`` ``(R,)``, but for those where ``look_ahead`` has been."""
        if any(self._foreseen[row] for row in rows.tolist()):  # most agents never look ahead
            rows = rows[~self._arrive(rows)]
        self._forward(rows)

    def _arrive(self, rows: IntArray) -> BoolArray:
        """``_recall`` where rows ``(R,)`` are now, of whose ways only what lies beyond is kept."""
        canvases = [canvas.tobytes() for canvas in self.canvas.completions(rows)]
        known = self._recall(rows, [(canvas,) for canvas in canvases])
        self.ahead[rows[known]] -= 1  # the step counts it
        for row, canvas in zip(rows.tolist(), canvases, strict=True):
            beyond = self._foreseen[row].items()
            self._foreseen[row] = {path[1:]: kept for path, kept in beyond if path[0] == canvas and path[1:]}
        return known

    def look_ahead(self, rows: IntArray, *actions: BoolArray) -> Observation:
        """What would be seen after actions, which are not taken: forwards that count in ``nfe``.

        Each action is a forward for each row. There is none where the episode would be over, nor for canvases
        that were looked at before on the same way. If actions are taken then, their predictions are there and
        are not computed again.

        Args:
            rows: ``(R,)`` rows with a running episode.
            *actions: ``(R, L)`` each, checked by ``as_bits``: one step after the other.

        Returns:
            The observation of all rows, in which ``rows`` have acted.

        Raises:
            NotShown: As ``check_look_ahead``.
        """
        self.check_look_ahead()
        here = self.state(rows)
        paths: dict[int, tuple[bytes, ...]] = dict.fromkeys(rows.tolist(), ())
        spent = np.zeros_like(self.ahead)
        for action in actions:
            changed = rows[self.act(rows, action)]
            changed = changed[~self.canvas.finished()[changed]]
            for row, canvas in zip(changed.tolist(), self.canvas.completions(changed), strict=True):
                paths[row] += (canvas.tobytes(),)
            new = changed[~self._recall(changed, [paths[row] for row in changed.tolist()])]
            self._forward(new)
            for row in new.tolist():
                self._foreseen[row][paths[row]] = self._prediction(row)
            spent[new] += 1
        seen = self.observation()
        super().restore(here, rows)
        self.ahead[:] += spent
        return seen

    def check_look_ahead(self) -> None:
        """Raises ``NotShown`` if there is no way back from a step."""
        if self.remembers:
            raise NotShown(
                "to look ahead needs a dLLM that does not remember earlier steps (cache, residual_context)"
            )

    def _recall(self, rows: IntArray, paths: Sequence[tuple[bytes, ...]]) -> BoolArray:
        """Gives rows ``(R,)`` the prediction at the end of their paths; says which of them were looked at."""
        known = np.zeros(len(rows), dtype=bool)
        for at, (row, path) in enumerate(zip(rows.tolist(), paths, strict=True)):
            if path in self._foreseen[row]:
                known[at] = True
                one = np.array([row])
                super().restore(super().state(one) | self._foreseen[row][path], one)
        return known

    def _prediction(self, row: int) -> dict[str, Any]:
        """The part of a row's state that a forward changes."""
        state = super().state(np.array([row]))
        return {name: state[name] for name in ("tokens", "predicted", "token_generators")}

    def _forget(self, rows: IntArray) -> None:
        for row in rows.tolist():
            self._foreseen[row].clear()

    def _forward(self, rows: IntArray) -> None:
        if not len(rows):
            return
        tokens, attention_mask = self.canvas.model_input(rows)
        on_canvas = torch.from_numpy(tokens), torch.from_numpy(attention_mask)
        options: dict[str, Any] = {
            "statistics": self._predicted.needs,
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
        predicted = prediction.tokens.cpu().numpy()
        self._check(predicted, prediction.confidence.cpu().numpy())
        self._tokens[rows] = predicted
        self._predicted.take(rows, prediction)

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
        return self._predicted.shown["confidence"]

    def statistic(self, name: str) -> NDArray[np.float32]:
        """``(N, L, ...)``: likewise, one of the observed statistics.

        Raises:
            KeyError: If it is not observed.
        """
        return self._predicted.shown[name]

    def observation(self) -> Observation:
        """The observation of all rows, batched, in fresh arrays."""
        masked = self.canvas.masked
        shown = masked if self.revealed_confidence == "one" else np.ones_like(masked)
        inside = self.canvas.in_active_block() if self.view == "block" else np.ones_like(masked)
        masked, shown = masked & inside, shown & inside
        observation: Observation = {
            "action_mask": self.canvas.selectable().astype(np.int8),
            "mask": masked.astype(np.int8),
            "progress": (self.canvas.steps[:, None] / self.length).astype(np.float32),
            **self._predicted.observation(shown, inside),
        }
        if "ends" in self.observe:
            observation["ends"] = (masked & np.isin(self._tokens, list(self.end_token_ids))).astype(np.int8)
        if "tokens" in self.observe:
            observation["tokens"] = self.canvas.completions()
        if "alpha" in self.observe:
            observation["alpha"] = self.alphas[:, None].astype(np.float32)
        if "remasks" in self.observe:
            observation["remasks"] = (self.canvas.remasked * inside).astype(np.float32)
        if "target_steps" in self.observe:
            observation["target_steps"] = self.targets[:, None].astype(np.float32)
        if "block_length" in self.observe:
            observation["block_length"] = self.canvas.block_lengths[:, None].astype(np.float32)
        return observation

    def outcomes(self, rows: IntArray) -> list[tuple[float, dict[str, Any]]]:
        """Rewards and infos of episodes that have ended."""
        completions = [self.backend.decode(ids) for ids in self.canvas.completions(rows).tolist()]
        if hasattr(self.task, "prepare"):
            finished = [problem for row in rows if (problem := self.problems[row]) is not None]
            self.task.prepare(completions, finished)
        drift = self._drift(rows) if self.commit_drift and len(rows) else np.zeros(len(rows))
        return list(map(self._outcome, rows.tolist(), completions, drift.tolist()))

    def _drift(self, rows: IntArray) -> NDArray[np.float64]:
        """``commit_drift`` of some rows ``(R,)``: one look of the dLLM at what they wrote."""
        tokens, attention_mask = map(torch.from_numpy, self.canvas.model_input(rows))
        positions = slice(tokens.shape[1] - self.length, None)
        seen = self.backend.predict(tokens, attention_mask, positions, statistics=("written",))
        written = seen.statistics["written"].cpu().numpy()
        return moves.commit_drift(self._sure[rows], written, ~self.canvas.masked[rows])

    def _outcome(self, row: int, completion: str, drift: float) -> tuple[float, dict[str, Any]]:
        problem = self.problems[row]
        assert problem is not None
        score = float(self.task.score(completion, problem))
        if not 0 <= score <= 1:  # NaN is neither
            raise ValueError(f"task {self.task.name} must score 0 to 1, got {score} for {completion!r}")
        metrics = self.task.metrics(completion, problem)
        info = self._account(row, score, completion, metrics, drift)
        paid_for = score if self.reward_metric is None else metrics[self.reward_metric]
        return self.prices.pay(paid_for, info["nfe"], self.alphas[row], self.targets[row]), info

    def unfinished(self, row: int) -> dict[str, Any]:
        """A row's info with the keys of the end of an episode before there is one: nothing is right yet."""
        return self._account(row, 0.0, "", dict.fromkeys(self.metric_names, 0.0))

    @property
    def measures(self) -> tuple[str, ...]:
        """What infos tell in numbers about the episode besides the task's metrics."""
        asked = {"remasks": self.moves.can_take_back, "commit_drift": self.commit_drift}
        return tuple(name for name, told in asked.items() if told)

    def _account(
        self, row: int, score: float, completion: str, metrics: Mapping[str, float], drift: float = 0.0
    ) -> dict[str, Any]:
        measured = {"remasks": int(self.canvas.remasked[row].sum()), "commit_drift": drift}
        return {
            "is_success": score >= 1.0,
            "score": score,
            "nfe": int(self.canvas.steps[row] + self.ahead[row]),
            "completion": completion,
            "problem": int(self.indices[row]),
            "empty_actions": int(self.empty_actions[row]),
            "ignored_actions": int(self.ignored_actions[row]),
            **{name: measured[name] for name in self.measures},
            **metrics,
        }

    def description(self) -> dict[str, Any]:
        """Everything that determines an episode besides the agent, as JSON values."""
        return {
            "backend": self.backend_name,
            "backend_kwargs": _json_values(self.backend_kwargs),
            "task": self.task.name,
            "task_kwargs": _json_values(self.task_kwargs),
            "split": self.task.split,
            "completion_length": self.length,
            "block_length": _json_values(self.blocks.lengths),
            "alpha": _json_values(self.prices.alpha),
            "target_steps": _json_values(self.prices.target_steps),
            "reward": self.prices.reward,
            "reward_metric": self.reward_metric,
            "on_empty": self.on_empty,
            **self.moves.description(self.length),
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
            just_remasked=self.canvas.just_remasked[row].copy(),
            confidence=np.where(masked, self.confidence[row], np.float32(1.0)),
            block_length=int(self.canvas.block_lengths[row]),
            block_offset=int(self.canvas.block_offsets(np.array([row]))[0]),
            step=int(self.canvas.steps[row]),
            max_steps=self.moves.max_steps,
            score=self.task.score(self.backend.decode(completion), problem) if finished else None,
        )


ARGUMENTS = tuple(signature(Engine).parameters)[1:-1]  # by keyword, without the number of rows


def select_best_where_empty(
    selected: BoolArray, candidates: BoolArray, confidence: NDArray[np.float32]
) -> None:
    """Where a row of ``(R, L)`` selects nothing, selects its most confident candidate, if any, in place."""
    empty = candidates.any(axis=1) & ~selected.any(axis=1)
    best = np.where(candidates[empty], confidence[empty], -1.0).argmax(axis=1)
    selected[np.flatnonzero(empty), best] = True


def _embedded(task: Task) -> str:
    """The dLLM that comes with the package for a task."""
    name = embedded_for(task)
    if name not in backend_names():
        raise ValueError(
            f"no dLLM for task {task.name!r} comes with the package; give backend=..., a checkpoint "
            "directory or a hub id such as GSAI-ML/LLaDA-8B-Instruct "
            f"(registered: {', '.join(backend_names())})"
        )
    return name


def _end_tokens(backend: Backend) -> frozenset[int]:
    return getattr(backend, "end_token_ids", None) or frozenset([backend.eos_token_id])


def _json_values(value: Any) -> Any:
    """The value as JSON has it: tuples are lists; paths, devices and the like become text."""
    return json.loads(json.dumps(value, default=str))
