"""Any Gymnasium vector environment as a Stable-Baselines3 ``VecEnv``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn


class GymVecEnv(VecEnv):
    """Adapter between the two vector interfaces; the batched step stays one call.

    SB3 restarts finished episodes within the same step, so the wrapped environment must, too. The last
    observation of an episode becomes ``terminal_observation``, its final info the info of that step, and
    the info of the restart goes to ``reset_infos``. Between episode ends only scalar infos are handed on:
    arrays such as an action mask are in the observation already, and splitting them takes time.

    If the observation has an ``action_mask``, ``env_method("action_masks")`` returns what MaskablePPO of
    sb3-contrib asks for.

    Args:
        env: A vector environment with autoreset mode SAME_STEP.

    Raises:
        ValueError: For another autoreset mode.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"Stable-Baselines3 needs autoreset mode SAME_STEP, got {mode}; pass "
                "autoreset_mode='SameStep' to a batched environment, or "
                "vector_kwargs={'autoreset_mode': AutoresetMode.SAME_STEP} to gymnasium.make_vec"
            )
        self.env = env  # before super().__init__, which asks for the render mode
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.metadata = dict(env.metadata)
        self.spec = env.spec
        self._actions: NDArray[Any] | None = None
        self._observation: Any = None

    def reset(self) -> VecEnvObs:
        """Restarts all rows with the seed and options set beforehand, which count once.

        Raises:
            ValueError: If rows were given different options; a vector environment takes one dict for all.
        """
        first = self._options[0]
        if any(options is not first and options != first for options in self._options):
            raise ValueError(f"a vector environment takes the same options for all rows, got {self._options}")
        observation, infos = self.env.reset(seed=self._seeds[0], options=first or None)
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [_row(infos, index) for index in range(self.num_envs)]
        return self.show(observation)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keeps the actions for ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Steps all rows."""
        observation, rewards, terminated, truncated, batched = self.env.step(self._actions)
        dones = np.logical_or(terminated, truncated)
        infos = _scalar_rows(batched, self.num_envs)
        for index in np.flatnonzero(dones).tolist():
            infos[index] = self._finish(_row(batched, index), index)
        cut_short = np.logical_and(truncated, np.logical_not(terminated)).tolist()
        for info, cut in zip(infos, cut_short, strict=True):
            info["TimeLimit.truncated"] = cut
        return self.show(observation), np.array(rewards, dtype=np.float32), dones, infos

    def close(self) -> None:
        """Closes the wrapped environment."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """One frame per row."""
        return list(cast("Sequence[np.ndarray]", self.env.render()))

    def action_masks(self) -> NDArray[np.bool_]:
        """``(n, 2L)``: for each position whether 0 and whether 1 is allowed, as MaskablePPO wants it.

        Raises:
            AttributeError: If the observation has no ``action_mask``.
        """
        if not isinstance(self._observation, dict) or "action_mask" not in self._observation:
            raise AttributeError("action_masks needs an observation with 'action_mask' and a reset")
        allow_one = self._observation["action_mask"].astype(bool)
        return np.stack([np.ones_like(allow_one), allow_one], axis=-1).reshape(self.num_envs, -1)

    def has_attr(self, attr_name: str) -> bool:
        """Whether ``get_attr``, or ``env_method`` for ``action_masks``, knows the name."""
        if attr_name == "action_masks":
            space = self.observation_space
            return isinstance(space, gym.spaces.Dict) and "action_mask" in space.spaces
        return super().has_attr(attr_name)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Attributes of the sub-environments; without such, the vector environment's for each row."""
        base = self.env.unwrapped
        if attr_name == "render_mode":
            values: Sequence[Any] = [self.env.render_mode] * self.num_envs
        elif hasattr(base, "get_attr"):
            values = base.get_attr(attr_name)
        else:
            values = [getattr(base, attr_name)] * self.num_envs
        return [values[index] for index in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets an attribute on the sub-environments; without such, on the vector environment.

        Raises:
            AttributeError: If there is no such attribute, or it is not to be set.
            ValueError: For a part of the rows of an environment without sub-environments.
        """
        base = self.env.unwrapped
        rows = set(self._get_indices(indices))
        everything = len(rows) == self.num_envs
        if not self.has_attr(attr_name):
            raise AttributeError(f"{base} has no attribute {attr_name!r} that could be set")
        if hasattr(base, "call"):
            old = [value] * self.num_envs if everything else self.get_attr(attr_name)
            base.set_attr(  # type: ignore[attr-defined]
                attr_name, [value if index in rows else old[index] for index in range(self.num_envs)]
            )
        elif not everything:
            raise ValueError(
                f"{base} is one object: {attr_name!r} cannot be set for rows {sorted(rows)} only"
            )
        else:
            set_one: Any = getattr(base, "set_attr", partial(setattr, base))
            set_one(attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Calls a method on all sub-environments; without such, once on the vector environment.

        ``indices`` chooses whose results are returned.
        """
        base = self.env.unwrapped
        if method_name == "action_masks":
            results: Sequence[Any] = list(self.action_masks())
        elif hasattr(base, "call"):
            results = base.call(method_name, *method_args, **method_kwargs)
        else:
            results = [getattr(base, method_name)(*method_args, **method_kwargs)] * self.num_envs
        return [results[index] for index in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether the sub-environments have the wrapper; a batched environment has none."""
        envs = getattr(self.env.unwrapped, "envs", None)
        return [
            envs is not None and is_wrapped(envs[index], wrapper_class)
            for index in self._get_indices(indices)
        ]

    def _finish(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        """Separates what SAME_STEP mixes: the returned info of the last step from that of the restart."""
        last: dict[str, Any] = {"terminal_observation": row.pop("final_obs")}
        if "episode" in row:  # Gymnasium's vector RecordEpisodeStatistics puts it beside the final info
            last["episode"] = row.pop("episode")
        last |= row.pop("final_info", row)
        self.reset_infos[index] = row
        return last

    def show(self, observation: Any) -> VecEnvObs:
        """A copy of what the wrapped environment returned, which counts as seen from here on."""
        self._observation = observation
        # SB3 stores an observation only after the next step, by when the environment may have reused it.
        if isinstance(observation, dict):
            return {key: np.array(value) for key, value in observation.items()}
        return np.array(observation)


def _scalar_rows(infos: Mapping[str, Any], rows: int) -> list[dict[str, Any]]:
    """Splits the one-dimensional entries of Gymnasium's batched infos into one dict per row."""
    split: list[dict[str, Any]] = [{} for _ in range(rows)]
    for key, values in infos.items():
        if key.startswith("_") or not isinstance(values, np.ndarray) or values.ndim != 1:
            continue
        chosen = infos.get(f"_{key}")
        indices: Iterable[int] = range(rows) if chosen is None else np.flatnonzero(chosen).tolist()
        scalars = values.tolist()
        for index in indices:
            split[index][key] = scalars[index]
    return split


def _row(infos: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Everything Gymnasium's batched infos hold about one row; ``_key`` masks say what that is."""
    row = {}
    for key, values in infos.items():
        chosen = infos.get(f"_{key}")
        if key.startswith("_") or (chosen is not None and not chosen[index]):
            continue
        value = _row(values, index) if isinstance(values, Mapping) else values[index]
        row[key] = value.item() if isinstance(value, np.generic) else value
    return row
