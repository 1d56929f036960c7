"""What revealing a whole line at once costs, by theory and with the embedded dLLM.

A dLLM that has learned the operations draws every position from its marginal distribution; positions that are
revealed in the same step are drawn independently of each other (arXiv 2510.04767).
"""

from __future__ import annotations

import itertools
import math

import pytest

import dllm_gym
from dllm_gym.tasks import load_task

EPISODES = 400


def copied(n):
    return 1.0


def replaced(n):
    """The new name stands at each of n places with probability 1/n, and must stand at one of them."""
    return n * (1 / n) * (1 - 1 / n) ** (n - 1)


def removed(n):
    """Place i, from 1, shows the i-th name if a later one went, with probability (n - i) / n, or the next."""
    still = [(n - i) / n for i in range(1, n)]
    return sum(
        math.prod(still[: gone - 1]) * math.prod(1 - p for p in still[gone - 1 :]) for gone in range(1, n + 1)
    )


def inserted(n):
    """Place i, from 0, shows the i-th name if the new one came later, the new one, or the one before."""
    total = 0.0
    for new in range(n + 1):
        shown = [(n - i if i < new else 1 if i == new else i) / (n + 1) for i in range(n + 1)]
        total += math.prod(shown)
    return total


def shuffled(n):
    """About n!/n^n; exactly a little less where a name stood before, for the line as it was is no answer."""
    stays = (math.factorial(n - 1) - 1) / (math.factorial(n) - 1)
    moves = (1 - stays) / (n - 1)
    orders = itertools.permutations(range(n))
    at_rest = [sum(a == b for a, b in enumerate(order)) for order in orders]
    exact = sum(stays**rest * moves ** (n - rest) for rest in at_rest if rest < n)
    assert exact == pytest.approx(math.factorial(n) / n**n, rel=0.03 if n > 4 else 0.06)
    return exact


@pytest.mark.parametrize(
    ("operation", "chance"),
    [
        ("copy", copied),
        ("replace-random", replaced),
        ("remove-random", removed),
        ("insert-random", inserted),
        ("shuffle", shuffled),
    ],
)
def test_a_line_that_is_drawn_at_once_is_right_as_often_as_theory_says(operation, chance):
    parameters = {"operations": [operation]}
    result = dllm_gym.evaluate(
        "confidence:k=10", EPISODES, task="lists", task_kwargs=parameters, temperature=1.0
    )
    assert result.nfe_mean == 1.0
    task = load_task("lists", "test", **parameters)
    lengths = [len(task.problem(index).metadata["line"]) for index in range(EPISODES)]
    chances = {n: chance(n) for n in set(lengths)}
    expected = [chances[n] for n in lengths]
    deviation = math.sqrt(sum(p * (1 - p) for p in expected))
    # 4 standard deviations of sampling, and a problem for a dLLM that is only nearly perfect
    assert abs(result.accuracy * EPISODES - sum(expected)) <= 4 * deviation + 1


@pytest.mark.parametrize("operation", ["copy", "reverse", "sort", "insert", "remove", "replace"])
def test_an_operation_with_one_answer_loses_nothing_at_once(operation):
    result = dllm_gym.evaluate("confidence:k=10", 200, task="lists", task_kwargs={"operations": [operation]})
    assert (result.nfe_mean, result.accuracy) == (1.0, pytest.approx(1.0, abs=0.02))
