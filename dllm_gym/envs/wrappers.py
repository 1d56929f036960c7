"""Wrappers for libraries that lack ``MultiBinary`` actions or Dict observations, or ask more of infos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from dllm_gym.envs.checks import as_bits

Action = NDArray[Any]

if TYPE_CHECKING:
    VectorActionWrapper = gym.vector.VectorActionWrapper[Any, Action, Action, NDArray[Any]]
    VectorWrapper = gym.vector.VectorWrapper[Any, Action, Any, Action, NDArray[Any]]
else:  # no type parameters in Gymnasium 1.2
    VectorActionWrapper, VectorWrapper = gym.vector.VectorActionWrapper, gym.vector.VectorWrapper


class MultiBinaryToMultiDiscrete(gym.ActionWrapper[Any, Action, Action], RecordConstructorArgs):
    """Turns a ``MultiBinary`` action space into ``MultiDiscrete`` with two choices per bit.

    For libraries that know ``MultiDiscrete`` but not ``MultiBinary``: the choice 1 sets the bit.
    Observations, rewards and infos stay what they are, so ``action_mask`` still says which bits may be 1,
    and ``env.get_wrapper_attr("action_masks")()`` says it in the form that maskable algorithms ask for, two
    entries per position: whether 0 is allowed and whether 1 is.

    A vector version of the wrapper exists: ``VectorMultiBinaryToMultiDiscrete``.

    Args:
        env: The environment to wrap; its action space must be ``MultiBinary``, of any shape.

    Raises:
        ValueError: For another action space.

    Example:
        >>> import gymnasium as gym
        >>> import dllm_gym
        >>> env = gym.make("DLLMUnmask-v0", completion_length=4)
        >>> env.action_space
        MultiBinary(4)
        >>> env = dllm_gym.MultiBinaryToMultiDiscrete(env)
        >>> env.action_space
        MultiDiscrete([2 2 2 2])
        >>> observation, info = env.reset(seed=0)
        >>> allowed = env.get_wrapper_attr("action_masks")().reshape(-1, 2)
        >>> bool(allowed.all())  # at first 0 and 1 are allowed everywhere
        True
        >>> action = env.action_space.sample(mask=tuple(allowed.astype("int8")))
    """

    def __init__(self, env: gym.Env[Any, Action]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.action_space = _multi_discrete(env.action_space)

    def action(self, action: Action) -> Action:
        """The bits of ``action``, int8.

        Raises:
            ValueError: For values other than 0 and 1.
        """
        return _bits(action)


class VectorMultiBinaryToMultiDiscrete(VectorActionWrapper, RecordConstructorArgs):
    """``MultiBinaryToMultiDiscrete`` for vector environments, such as ``gym.make_vec`` makes.

    Args:
        env: The vector environment to wrap; its single action space must be ``MultiBinary``.

    Raises:
        ValueError: For another action space.

    Example:
        >>> import gymnasium as gym
        >>> import dllm_gym
        >>> envs = gym.make_vec("DLLMUnmask-v0", num_envs=2, completion_length=4)
        >>> envs = dllm_gym.VectorMultiBinaryToMultiDiscrete(envs)
        >>> envs.single_action_space
        MultiDiscrete([2 2 2 2])
        >>> envs.action_space
        Box(0, 1, (2, 4), int64)
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Action, NDArray[Any]]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.single_action_space = _multi_discrete(env.single_action_space)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def actions(self, actions: Action) -> Action:
        """The bits of ``actions``, int8.

        Raises:
            ValueError: For values other than 0 and 1.
        """
        return _bits(actions)


class VectorFlattenObservation(VectorWrapper, RecordConstructorArgs):
    """Dict observations of a vector environment as one flat array per row, in every autoreset mode.

    Gymnasium's own vector ``FlattenObservation`` refuses ``SameStep``. The numbers and their order are those
    of ``gymnasium.wrappers.FlattenObservation``: key after key in alphabetical order.

    Args:
        env: The vector environment to wrap; its observations must be a Dict of ``Box`` and ``MultiBinary``.

    Raises:
        ValueError: For another observation space.

    Example:
        >>> import gymnasium as gym
        >>> import dllm_gym
        >>> envs = gym.make_vec("DLLMUnmask-v0", num_envs=2, autoreset_mode="SameStep", completion_length=4)
        >>> envs = dllm_gym.VectorFlattenObservation(envs)
        >>> envs.reset(seed=0)[0].shape
        (2, 13)
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Action, NDArray[Any]]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        single = env.single_observation_space
        parts = single.spaces.values() if isinstance(single, spaces.Dict) else ()
        if not parts or not all(isinstance(part, spaces.Box | spaces.MultiBinary) for part in parts):
            raise ValueError(f"observations must be a Dict of Box and MultiBinary, got {single}")
        self.single_observation_space = spaces.utils.flatten_space(single)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Starts episodes, as the wrapped environment does."""
        observations, infos = self.env.reset(seed=seed, options=options)
        return self._flat(observations), infos

    def step(
        self, actions: Action
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Steps all rows; ``final_obs`` is flat, too."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        if "final_obs" in infos:
            single, last = self.env.single_observation_space, infos["final_obs"]
            for row in np.flatnonzero(infos["_final_obs"]):
                last[row] = spaces.utils.flatten(single, last[row])
        return self._flat(observations), rewards, terminations, truncations, infos

    def _flat(self, observations: Any) -> NDArray[Any]:
        keys = self.env.single_observation_space.spaces  # type: ignore[attr-defined]
        parts = [np.reshape(observations[key], (self.num_envs, -1)) for key in keys]
        return np.concatenate(parts, axis=1, dtype=self.single_observation_space.dtype)


class FullInfo(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Gives every info the same keys: at reset, in mid-episode and at the end, terminated or truncated.

    For libraries that want infos that stay alike, such as Minari's ``DataCollector(record_infos=True)``, or
    read keys at every end, as the ``info_keywords`` of Stable-Baselines3's ``Monitor`` do at the end that a
    ``TimeLimit`` makes. Until an episode ends nothing is right: ``is_success`` is ``False``, ``score`` and
    metrics are 0, ``completion`` is empty, and ``nfe`` counts the steps so far. A truncated episode is scored
    as it stands.

    Args:
        env: A ``DLLMUnmask-v0``, wrapped or not; put this outside of ``TimeLimit``.

    Example:
        >>> import gymnasium as gym
        >>> import dllm_gym
        >>> env = dllm_gym.FullInfo(gym.make("DLLMUnmask-v0", task="sudoku"))
        >>> first = env.reset(seed=0)[1]
        >>> *_, last = env.step(env.action_space.sample())
        >>> first.keys() == last.keys(), first["nfe"], last["nfe"]
        (True, 0, 1)
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, self._full(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps the wrapped environment."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if truncated and not terminated:
            engine = self.env.unwrapped.engine  # type: ignore[attr-defined]
            info = {**engine.outcomes(np.zeros(1, dtype=np.int64))[0][1], **info}
        return observation, reward, terminated, truncated, self._full(info)

    def _full(self, info: dict[str, Any]) -> dict[str, Any]:
        engine = self.env.unwrapped.engine  # type: ignore[attr-defined]
        return {"prompt": engine.problems[0].prompt, **engine.unfinished(0), **info}


def _multi_discrete(space: gym.Space[Any]) -> spaces.MultiDiscrete:
    if not isinstance(space, spaces.MultiBinary):
        raise ValueError(f"the action space must be MultiBinary, got {space}")
    return spaces.MultiDiscrete(np.full(space.shape, 2))


def _bits(action: Action) -> NDArray[np.int8]:
    return as_bits(action).astype(np.int8)
