"""A dLLM of your own in one function: anything that turns tokens into logits.

The function here scores a letter by how often it follows the two before it in one sentence. Behind masks it
knows nothing, so revealing one position after the other makes the sentence and revealing all at once does
not.

Run: ``python examples/callable_dllm.py``
"""

from collections.abc import Sequence

import gymnasium as gym
import torch

import dllm_gym
from dllm_gym.backends import CallableBackend
from dllm_gym.tasks import Problem

SENTENCE = "the quick brown fox jumps over the lazy dog"
LETTERS = sorted(set(SENTENCE))
MASK, END = len(LETTERS), len(LETTERS) + 1
VOCABULARY = len(LETTERS) + 2


class Letters:
    """A tokenizer: one letter, one token."""

    def encode(self, text: str) -> list[int]:
        return [LETTERS.index(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join([*LETTERS, "_", "."][token] for token in ids)


IDS = Letters().encode(SENTENCE)
COUNTS = torch.zeros(VOCABULARY, VOCABULARY, VOCABULARY)  # how often the third letter follows the first two
for at in range(2, len(IDS)):
    COUNTS[IDS[at - 2], IDS[at - 1], IDS[at]] += 1


def logits(tokens: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """``(B, T)`` tokens to ``(B, T, V)`` logits. Padding tells nothing: it is made to look like a mask."""
    tokens = torch.where(attention_mask == 1, tokens, MASK)
    return 4 * COUNTS[tokens.roll(2, dims=1), tokens.roll(1, dims=1)]


class Finish:
    """A task: go on with a sentence."""

    name, completion_length, num_problems = "finish", 10, 1

    def __init__(self, split: str = "train") -> None:
        self.split = split

    def problem(self, index: int) -> Problem:
        return Problem(prompt="the quick", reference=" brown fox")

    def score(self, completion: str, problem: Problem) -> float:
        return float(completion == problem.reference)

    def metrics(self, completion: str, problem: Problem) -> dict[str, float]:
        return {}


def main() -> None:
    backend = CallableBackend(logits, Letters(), mask_token_id=MASK, eos_token_id=END, vocab_size=VOCABULARY)
    dllm_gym.register_backend("letters", lambda: backend)
    dllm_gym.register_task("finish", Finish)
    env = gym.make("DLLMUnmask-v0", backend="letters", task="finish")
    agents = {
        "left-to-right": dllm_gym.make_strategy("left-to-right").act,
        "all at once": lambda o: o["mask"],
    }
    for name, act in agents.items():
        observation, info = env.reset(seed=0)
        terminated = False
        while not terminated:
            observation, reward, terminated, _, info = env.step(act(observation))
        print(f"{name:14} {'the quick' + info['completion']!r}: reward {reward:.3f}")


if __name__ == "__main__":
    main()
