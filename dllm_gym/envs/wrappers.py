"""Wrappers for libraries whose action spaces don't include ``MultiBinary``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

Action = NDArray[Any]

if TYPE_CHECKING:
    VectorActionWrapper = gym.vector.VectorActionWrapper[Any, Action, Action, NDArray[Any]]
else:
    VectorActionWrapper = gym.vector.VectorActionWrapper  # no type parameters in Gymnasium 1.2


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


def _multi_discrete(space: gym.Space[Any]) -> spaces.MultiDiscrete:
    if not isinstance(space, spaces.MultiBinary):
        raise ValueError(f"the action space must be MultiBinary, got {space}")
    return spaces.MultiDiscrete(np.full(space.shape, 2))


def _bits(action: Action) -> NDArray[np.int8]:
    choices = np.asarray(action)
    if not np.isin(choices, (0, 1)).all():
        raise ValueError(f"an action must hold only 0 and 1, got {action}")
    return choices.astype(np.int8)
