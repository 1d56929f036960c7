"""A stand-in for the unmasking environment: the same spaces, a random dLLM, nothing to load."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space


class ToyUnmaskVectorEnv(VectorEnv[Any, Any, Any]):
    """Reveals what is asked for and rewards few steps; an empty action spends a step.

    Its observation buffers are reused on purpose: SAME_STEP adapters have to copy them.
    """

    def __init__(self, num_envs: int = 4, length: int = 6, extra_keys: bool = False) -> None:
        self.num_envs, self.length = num_envs, length
        self.metadata = {
            "autoreset_mode": AutoresetMode.SAME_STEP,
            "render_modes": ["rgb_array"],
            "render_fps": 4,
        }
        self.render_mode = "rgb_array"
        observation = {
            "confidence": spaces.Box(0, 1, (length,), np.float32),
            "mask": spaces.MultiBinary(length),
            "action_mask": spaces.MultiBinary(length),
            "progress": spaces.Box(0, 1, (1,), np.float32),
        }
        if extra_keys:
            observation["entropy"] = spaces.Box(0, np.inf, (length,), np.float32)
            observation["tokens"] = spaces.MultiDiscrete([50] * length)
        self.single_observation_space = spaces.Dict(observation)
        self.single_action_space = spaces.MultiBinary(length)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.mask = np.ones((num_envs, length), dtype=np.int8)
        self.steps = np.zeros(num_envs, dtype=np.int64)
        self.buffers: dict[str, Any] = {
            key: np.zeros((num_envs, *space.shape), space.dtype)
            for key, space in self.single_observation_space.items()
        }

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.last_seed, self.last_options = seed, options
        self._restart(np.ones(self.num_envs, dtype=bool))
        return self._observe(), self._infos()

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.mask &= ~np.asarray(actions).astype(bool)
        self.steps += 1
        terminated = (self.mask.sum(1) == 0) | (self.steps == self.length)
        finished = self.mask.sum(1) == 0
        rewards = np.where(terminated & finished, (self.length - self.steps + 1) / self.length, 0.0)
        infos: dict[str, Any] = {}
        if terminated.any():
            last = self._observe()
            infos["final_obs"] = np.full(self.num_envs, None, dtype=object)
            for row in np.flatnonzero(terminated):
                infos["final_obs"][row] = {key: value[row].copy() for key, value in last.items()}
            final = {**self._infos(), "is_success": finished, "_is_success": terminated}
            infos |= {"final_info": final, "_final_obs": terminated, "_final_info": terminated}
            self._restart(terminated)
        observation = self._observe()
        return observation, rewards, terminated, np.zeros_like(terminated), {**infos, **self._infos()}

    def render(self) -> Any:
        return tuple(np.full((4, 6, 3), row, dtype=np.uint8) for row in range(self.num_envs))

    def _restart(self, rows: Any) -> None:
        self.mask[rows] = 1
        self.steps[rows] = 0

    def _infos(self) -> dict[str, Any]:
        everyone = np.ones(self.num_envs, dtype=bool)
        return {
            "steps": self.steps.copy(),
            "_steps": everyone,
            "action_mask": self.mask.copy(),
            "_action_mask": everyone,
        }

    def _observe(self) -> dict[str, Any]:
        noise = self.np_random.random(self.mask.shape, dtype=np.float32)
        self.buffers["confidence"][:] = np.where(self.mask == 1, noise, 1)
        self.buffers["mask"][:] = self.mask
        self.buffers["action_mask"][:] = self.mask
        self.buffers["progress"][:] = (self.steps / self.length)[:, None]
        return dict(self.buffers)
