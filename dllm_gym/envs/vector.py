"""``DLLMUnmask-v0`` in batches: one forward of the dLLM for all rows that need one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from dllm_gym.envs import checks
from dllm_gym.envs.engine import ARGUMENTS, Engine
from dllm_gym.envs.observations import Observation
from dllm_gym.envs.rows import BoolArray, IntArray
from dllm_gym.envs.shell import METADATA, Shell, noise_rng, two_sided

Action = NDArray[Any]

OWN_ARGUMENTS = ("num_envs", "autoreset_mode", "max_episode_steps", "render_mode")


class UnmaskVectorEnv(Shell, gym.vector.VectorEnv[Observation, Action, NDArray[Any]]):
    """``num_envs`` episodes of ``DLLMUnmask-v0`` in one batch; see ``UnmaskEnv`` for everything else.

    Row i behaves exactly like a single environment seeded with ``seed + i`` (or ``seed[i]``): it has its
    own generator, and no row depends on another. With ``group_size`` G, rows of a group of G draw their
    problems from the generator of the group's first row.

    Args:
        num_envs: Number of rows.
        autoreset_mode: ``NextStep``, ``SameStep`` or ``Disabled``, as text or ``AutoresetMode``.
        max_episode_steps: If given, an episode is truncated after so many steps, as by Gymnasium's
            ``TimeLimit``: its reward is then 0, unless it is terminated, too. Its info says what it came to.
        render_mode: As in ``UnmaskEnv``.
        **kwargs: The arguments of ``UnmaskEnv``.

    Raises:
        ValueError: For values out of range, naming what is accepted.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        checks.refuse_unknown(kwargs, (*OWN_ARGUMENTS, *ARGUMENTS))
        self.num_envs = checks.positive("num_envs", num_envs)
        self.autoreset_mode = checks.autoreset_mode(autoreset_mode)
        self.metadata = {**deepcopy(METADATA), "autoreset_mode": self.autoreset_mode}
        self.render_mode = checks.render_mode(render_mode)
        limit = None if max_episode_steps is None else checks.positive("max_episode_steps", max_episode_steps)
        self._max_episode_steps = limit
        self.engine = Engine(self.num_envs, **kwargs)
        self.single_observation_space = self.engine.observation_space
        self.single_action_space = self.engine.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._rows = np.arange(self.num_envs)
        self._started = False

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts episodes in all rows, or in those that ``options`` name.

        Args:
            seed: Row i is seeded with ``seed + i``, or with ``seed[i]``.
            options: ``reset_mask``, ``(num_envs,)`` bool array, restricts the reset to some rows;
                ``problem``, an index or ``(num_envs,)`` indices, picks the problems; ``alpha``,
                ``target_steps`` and ``block_length``, a number or ``(num_envs,)`` of them, are those of the
                episodes that start now, and of no later ones.

        Raises:
            TypeError: If ``reset_mask`` is no bool array.
            ValueError: For wrong shapes, seeds, unknown options, numbers out of range or an empty
                ``reset_mask``.
        """
        given = checks.reset_options(options, ("reset_mask", *checks.OPTIONS))
        rows = self._rows
        if "reset_mask" in given:
            rows = np.flatnonzero(checks.reset_mask(given["reset_mask"], self.num_envs))
        chosen = checks.chosen_episodes(given, self.num_envs, rows, self.engine.blocks.fitting)
        self._seed(checks.seed_of_each(seed, self.num_envs), rows)
        self.engine.start(rows, **chosen)
        self.engine.predict(rows)
        self._started = True
        observation = self.engine.observation()
        return observation, self._reset_infos({}, rows, observation)

    def step(
        self, actions: Action
    ) -> tuple[Observation, NDArray[np.float64], BoolArray, BoolArray, dict[str, Any]]:
        """Steps every row; see ``UnmaskEnv.step``.

        Args:
            actions: ``(num_envs, L)``, 0/1 in any dtype.

        Raises:
            ValueError: If the actions are none of bits or have another shape.
            RuntimeError: Before the first reset, or, but for ``NextStep``, if a row has no running episode.
        """
        actions = checks.as_bits(actions, (self.num_envs, self.engine.length))
        if not self._started:
            raise RuntimeError("no episode is running; call reset first")
        ended = self.engine.ended
        if self.autoreset_mode is not AutoresetMode.NEXT_STEP and ended.any():
            rows = np.flatnonzero(ended).tolist()
            raise RuntimeError(f"no episode is running in rows {rows}; reset them by reset_mask first")
        restarted = np.flatnonzero(ended)  # NextStep: these spend the step on their reset
        acting = np.flatnonzero(~ended)
        stale = np.zeros(self.num_envs, dtype=bool)  # rows whose prediction must be computed anew
        stale[acting] = self.engine.act(acting, actions[acting])
        terminations, truncations = self._over(restarted)
        over = np.flatnonzero(terminations | truncations)
        rewards = np.zeros(self.num_envs)
        infos: dict[str, Any] = {}
        stale[terminations] = False
        ended[over] = True
        if len(restarted):
            self.engine.start(restarted)
            stale[restarted] = True
        outcomes = self.engine.outcomes(over)
        rewards[over] = [reward for reward, _ in outcomes]
        rewards[~terminations] = 0.0
        if self.autoreset_mode is AutoresetMode.SAME_STEP and len(over):
            self.engine.predict(np.flatnonzero(stale & truncations))  # their last observations are needed
            self._add_final(infos, over, [info for _, info in outcomes])
            self.engine.start(over)
            stale[over] = True
            restarted = over
        else:
            for row, (_, info) in zip(over.tolist(), outcomes, strict=True):
                infos = self._add_info(infos, info, row)
        self.engine.predict(np.flatnonzero(stale))
        observation = self.engine.observation()
        infos = self._reset_infos(infos, restarted, observation)
        return observation, rewards, terminations, truncations, infos

    def _over(self, restarted: IntArray) -> tuple[BoolArray, BoolArray]:
        """Which rows are terminated and which truncated; those that ``restarted`` are neither."""
        canvas, limit = self.engine.canvas, self._max_episode_steps
        terminations = canvas.finished()
        truncations = np.zeros_like(terminations) if limit is None else canvas.steps >= limit
        terminations[restarted] = truncations[restarted] = False
        return terminations, truncations

    def state(self, rows: Sequence[int] | IntArray | None = None) -> dict[str, Any]:
        """Everything about episodes in flight, as arrays and plain values: from where ``restore`` goes on.

        Args:
            rows: Which, in any order and as often as you like; ``None`` is all of them in theirs.

        Raises:
            RuntimeError: Before the first reset, and if the dLLM remembers earlier steps (``cache``,
                ``residual_context``); ``copy.deepcopy`` copies such an environment.
            ValueError: For rows there are not.
        """
        if not self._started:
            raise RuntimeError("there are no episodes; call reset first")
        return self.engine.state(self._chosen(rows))

    def restore(self, state: Mapping[str, Any], rows: Sequence[int] | IntArray | None = None) -> Observation:
        """Goes on where ``state`` was taken, in an environment made with the same arguments.

        Args:
            state: Of as many rows as are restored, or of one row, which all of them become. That of a single
                environment is a state of one row.
            rows: Which rows, each once; ``None`` is all of them. The others go on undisturbed.

        Returns:
            The observation of all rows, as it was last seen where the state was taken.

        Raises:
            RuntimeError: If only some rows are restored before the first reset.
            ValueError: For a state of an environment made with other arguments or of another number of rows,
                and for rows there are not.
        """
        chosen = self._chosen(rows)
        if len(np.unique(chosen)) < len(chosen):
            raise ValueError(f"rows must be restored once each, got {rows!r}")
        if not self._started and len(chosen) < self.num_envs:
            raise RuntimeError("no episode is running; restore all rows or call reset first")
        self.engine.restore(state, chosen)
        self._started = True
        return self.engine.observation()

    def _chosen(self, rows: Sequence[int] | IntArray | None) -> IntArray:
        if rows is None:
            return self._rows
        chosen = np.asarray(rows)
        if chosen.dtype.kind not in "iu" or chosen.ndim != 1 or not np.isin(chosen, self._rows).all():
            raise ValueError(f"rows must be a list of numbers from 0 to {self.num_envs - 1}, got {rows!r}")
        return chosen.astype(np.int64)

    def set_attr(self, name: str, value: Any) -> None:
        """Sets ``alpha``, ``target_steps`` or ``block_length`` of all episodes that start from now on.

        Raises:
            AttributeError: For everything else: it would look set.
        """
        self._set(name, value)

    def action_masks(self) -> BoolArray:
        """``(num_envs, 2L)`` bool, as in ``UnmaskEnv.action_masks``."""
        return two_sided(self.engine.canvas.selectable())

    def render(self) -> tuple[Any, ...] | None:
        """One frame per row."""
        if self.render_mode is None:
            gym.logger.warn("render() was called, but the environment was made without a render_mode")
            return None
        return tuple(self._render(row, self.render_mode) for row in range(self.num_envs))

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seed of every row."""
        return tuple(self.engine.seeds)

    def _seed(self, seeds: Sequence[int | None], rows: IntArray) -> None:
        """Seeds ``rows``; without a seed, only rows that never had one."""
        first = not self._started
        engine = self.engine
        for row in self._rows.tolist() if first else rows.tolist():
            given, leader = seeds[row], row - row % engine.group_size
            if given is None and not first:
                continue
            engine.seeds[row] = np_random(None)[1] if given is None else given
            engine.problem_rngs[row] = np_random(engine.seeds[leader])[0]
            engine.noise_rngs[row] = noise_rng(engine.seeds[row])

    def _add_final(self, infos: dict[str, Any], ended: IntArray, final_infos: list[dict[str, Any]]) -> None:
        """``final_obs`` and ``final_info`` of rows that SameStep is about to restart."""
        last = self.engine.observation()
        for row, info in zip(ended.tolist(), final_infos, strict=True):
            final_obs = {key: value[row].copy() for key, value in last.items()}
            info["action_mask"] = final_obs["action_mask"].copy()
            infos.update(self._add_info(infos, {"final_obs": final_obs, "final_info": info}, row))

    def _reset_infos(self, infos: dict[str, Any], rows: IntArray, observation: Observation) -> dict[str, Any]:
        for row in rows.tolist():
            problem = self.engine.problems[row]
            assert problem is not None
            info = {"problem": int(self.engine.indices[row]), "prompt": problem.prompt}
            infos = self._add_info(infos, info, row)
        infos["action_mask"] = observation["action_mask"].copy()
        infos["_action_mask"] = np.ones(self.num_envs, dtype=bool)
        return infos
