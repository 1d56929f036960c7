"""A dLLM of your own: anything that turns tokens into logits.

The toy model below knows one sentence. It predicts a position with certainty once the neighbour to the
left is revealed and guesses before, so the best order is left to right.

Run: ``python examples/own_dllm.py``
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import torch

import dllm_gym
from dllm_gym.backends.base import Prediction, predict_from_logits
from dllm_gym.tasks import Problem

WORDS = ["<mask>", "<end>", "reveal", "what", "you", "know", "first"]
SENTENCE = [2, 3, 4, 5, 6, 1]


class OneSentence:
    """Implements ``dllm_gym.backends.Backend``."""

    mask_token_id, eos_token_id, pad_token_id, vocab_size = 0, 1, 1, len(WORDS)
    device = torch.device("cpu")
    tokenizer: Any = None

    def encode_prompt(self, prompt: Any) -> list[int]:
        return [1]

    def decode(self, ids: Sequence[int]) -> str:
        words = [WORDS[token] for token in ids]
        return " ".join(words[: words.index("<end>")] if "<end>" in words else words)

    def predict(
        self, tokens: torch.Tensor, attention_mask: torch.Tensor, positions: Any, **options: Any
    ) -> Prediction:
        left = tokens.roll(1, dims=1)[:, positions]  # (B, L)
        sure = (left != self.mask_token_id).float()[..., None]  # (B, L, 1)
        right = torch.nn.functional.one_hot(torch.tensor(SENTENCE), self.vocab_size).float()  # (L, V)
        guess = torch.nn.functional.one_hot(torch.tensor([2] * len(SENTENCE)), self.vocab_size).float()
        logits = 8 * sure * right + 1 * (1 - sure) * guess
        return predict_from_logits(logits, self.mask_token_id, standing=tokens[:, positions], **options)


class Recite:
    """Implements ``dllm_gym.tasks.Task``."""

    name, completion_length, num_problems = "recite", len(SENTENCE), 1

    def __init__(self, split: str = "train") -> None:
        self.split = split

    def problem(self, index: int) -> Problem:
        return Problem(prompt="recite", reference="reveal what you know first")

    def score(self, completion: str, problem: Problem) -> float:
        return float(completion == problem.reference)

    def metrics(self, completion: str, problem: Problem) -> dict[str, float]:
        return {}


def main() -> None:
    dllm_gym.register_backend("one-sentence", OneSentence)
    dllm_gym.register_task("recite", Recite)
    env = gym.make("DLLMUnmask-v0", backend="one-sentence", task="recite")
    for name in ("left-to-right", "random"):
        agent = dllm_gym.make_strategy(name)
        observation, info = env.reset(seed=0)
        terminated = False
        while not terminated:
            observation, reward, terminated, _, info = env.step(agent.act(observation))
        print(f"{name:14} {info['completion']!r}: reward {reward:.3f}")


if __name__ == "__main__":
    main()
