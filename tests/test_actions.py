"""One check of actions on every path an agent can act on: what is no bit is refused, what is one accepted."""

import numpy as np
import pytest
import torch
from toy_backend import ToyBackend, ToyTask

import dllm_gym
from dllm_agents.serving.blocks import BlockWriter
from dllm_gym.envs.checks import as_bits
from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.envs.vector import UnmaskVectorEnv
from dllm_gym.looking.film import film

LENGTH = 6


NO_BITS = {
    "logits": lambda o: o["confidence"] - 5.0,
    "probabilities": lambda o: o["confidence"] * 0.5,
    "NaN": lambda o: np.full(o["mask"].shape, np.nan),
    "-1": lambda o: -o["mask"].astype(int),
    "texts": lambda o: o["mask"].astype(str),
    "rows of unequal length": lambda o: [[1], [1, 0]],
    "None": lambda o: None,
}


def single_step(agent, wrap=lambda env: env):
    env = wrap(UnmaskEnv(backend=ToyBackend(), task=ToyTask()))
    observation, _ = env.reset(seed=0)
    action = agent({key: value[None] for key, value in observation.items()})
    env.step(action if action is None else action[0])


def batched_step(agent, wrap=lambda envs: envs):
    envs = wrap(UnmaskVectorEnv(2, backend=ToyBackend(), task=ToyTask()))
    envs.step(agent(envs.reset(seed=0)[0]))


def written_block(agent):
    masked = torch.ones((2, LENGTH), dtype=torch.bool)
    BlockWriter(agent, 10).write(torch.randn(2, LENGTH, 13), torch.full((2, LENGTH), 10), masked, [0, 0])


WHERE = {"backend": ToyBackend(), "task": ToyTask()}
PATHS = {
    "step": single_step,
    "batched step": batched_step,
    "wrapped step": lambda agent: single_step(agent, dllm_gym.MultiBinaryToMultiDiscrete),
    "wrapped batched step": lambda agent: batched_step(agent, dllm_gym.VectorMultiBinaryToMultiDiscrete),
    "evaluate": lambda agent: dllm_gym.evaluate(agent, 2, **WHERE),
    "compare": lambda agent: dllm_gym.compare([agent], 2, **WHERE),
    "analyze": lambda agent: dllm_gym.analyze([agent], 2, **WHERE),
    "generate": lambda agent: dllm_gym.generate("1", agent, ToyBackend(), completion_length=LENGTH),
    "film": lambda agent: film([agent], problem=1, **WHERE),
    "serving": written_block,
}
every_path = pytest.mark.parametrize("path", PATHS)


@every_path
@pytest.mark.parametrize("kind", NO_BITS)
def test_what_is_no_bit_is_refused(path, kind):
    with pytest.raises(ValueError, match=r"an action must (hold only 0 and 1|be 0/1 numbers)"):
        PATHS[path](NO_BITS[kind])


@every_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64])
def test_tensors_are_accepted_with_gradients_too(path, dtype):
    """Those on a GPU are moved by the same lines: ``test_action_on_a_gpu``."""

    def agent(observation):
        bits = torch.from_numpy(observation["action_mask"]).to(dtype)
        return bits.requires_grad_() if bits.is_floating_point() else bits

    PATHS[path](agent)


def test_tensors_mean_what_arrays_mean():
    def agent(observation):
        surest = torch.from_numpy(observation["confidence"] * observation["action_mask"]).argmax(-1)
        return torch.nn.functional.one_hot(surest, LENGTH).float().requires_grad_()

    result = dllm_gym.evaluate(agent, 10, **WHERE)
    expected = dllm_gym.evaluate("confidence:k=1", 10, **WHERE)
    assert np.array_equal(result.records.score, expected.records.score)
    assert result.nfe_mean == LENGTH


@pytest.mark.parametrize("value", [1 + 1e-12, -0.0, 2**60, np.nan, -1, 256, 1e-300])
def test_nothing_is_rounded_to_a_bit(value):
    for action in (np.array([value, 0.0]), torch.tensor([value, 0.0], dtype=torch.float64), [value, 0]):
        if value == 0:
            assert not as_bits(action).any()
        else:
            with pytest.raises(ValueError, match="only 0 and 1"):
                as_bits(action)
