"""What is trained and what is evaluated: two tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dllm_agents.config import TrainConfig, find_config, load_config
from dllm_gym.evaluation import strategies_of, sweep
from dllm_gym.strategies import Strategy

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Budget:
    """How much everything costs.

    Attributes:
        name: Part of the directories.
        seeds: Training seeds.
        main_steps: Environment steps of the policy for full diffusion.
        any_steps: Of the conditioned one, with targets from 2 steps on.
        further_steps: Of the same, going on with targets from 1.5 steps on.
        semi_steps: Of the semi-autoregressive one.
        short_steps: Of those that need few: the first with another alpha, and the one for sudoku.
        ablation_steps: Of those that are only compared with each other.
        eval_episodes: Validation problems while training.
        problems: Test problems.
    """

    name: str
    seeds: tuple[int, ...]
    main_steps: int
    any_steps: int
    further_steps: int
    semi_steps: int
    short_steps: int
    ablation_steps: int
    eval_episodes: int
    problems: int


FULL = Budget("full", SEEDS, 1_200_000, 600_000, 900_000, 800_000, 150_000, 150_000, 256, 1000)
QUICK = Budget("quick", (0,), 30_000, 30_000, 10_000, 10_000, 10_000, 10_000, 64, 100)
TINY = Budget("tiny", (0,), 2_000, 2_000, 2_000, 2_000, 2_000, 2_000, 8, 4)  # to be interrupted

PAPER_FEATURES = ("confidence", "log_confidence_gap", "mask", "action_mask", "progress")


def _without(*names: str) -> dict[str, Any]:
    return {"features": [name for name in PAPER_FEATURES if name not in names]}


def _plus(*names: str) -> dict[str, Any]:
    return {"features": [*PAPER_FEATURES, *names]}


@dataclass(frozen=True)
class Run:
    """A training: a shipped configuration with changes (mappings are merged).

    Attributes:
        shipped: Its name in ``agents/configs``.
        changes: Fields to replace.
        steps: Which of the budget's numbers of steps it gets.
        begins_with: The run whose policy of the same seed it starts from.
    """

    shipped: str
    changes: dict[str, Any]
    steps: str = "ablation_steps"
    begins_with: str | None = None


def _alpha(alpha: float) -> Run:
    return Run("scratch/grpo", {"env": {"alpha": alpha}}, "short_steps", begins_with="full")


# In the order they are trained: whatever another one begins with comes before it.
RUNS: dict[str, Run] = {
    "full": Run("scratch/grpo", {}, "main_steps"),
    "any-first": Run("scratch/grpo-any", {}, "any_steps", begins_with="full"),
    "any": Run(
        "scratch/grpo-any", {"env": {"target_steps": [1.5, 24]}}, "further_steps", begins_with="any-first"
    ),
    "semi": Run("grpo-semi", {}, "semi_steps"),
    "base": Run("scratch/grpo", {}),
    "additive": Run("scratch/grpo", {"env": {"reward": "additive"}}),
    "dpls": Run("scratch/grpo", {"policy": {"sampler": "dpls"}}),
    "top-k": Run("scratch/grpo", {"policy": _plus("top_k")}),
    "hidden": Run("scratch/grpo", {"policy": _plus("hidden")}),
    # action_mask is the mask again in full diffusion, so dropping the mask drops it, too
    "no-mask": Run("scratch/grpo", {"policy": _without("mask", "action_mask")}),
    "no-time": Run("scratch/grpo", {"policy": _without("progress")}),
    "steered": Run(
        "scratch/grpo", {"expert": "fast-dllm:threshold=0.9", "expert_block_length": 8, "num_experts": 1}
    ),
    "answer-only": Run("scratch/grpo", {"env": {"reward_metric": "answer_correct"}}),
    "ppo": Run("scratch/ppo", {}),
    "a2c": Run("scratch/a2c", {}),
    "alpha-0.3": _alpha(0.3),
    "alpha-10": _alpha(10.0),
    "sudoku": Run("scratch/grpo", {"env": {"task": "sudoku"}}, "short_steps"),
}


def run_config(name: str, seed: int, budget: Budget) -> TrainConfig:
    """The configuration of a run, but for ``init_from``, which depends on where the other run lies."""
    run = RUNS[name]
    steps = getattr(budget, run.steps)
    evaluations = 8 if run.steps in ("main_steps", "any_steps", "further_steps") else 2
    costs = {
        "total_timesteps": steps,
        "eval_every": steps // evaluations,
        "eval_episodes": budget.eval_episodes,
        "seed": seed,
    }
    return load_config(find_config(run.shipped)).merged(run.changes, costs)


# Where agents are evaluated: arguments of ``dllm_gym.evaluate``.
_BF16 = {"backend_kwargs": {"dtype": "auto"}}
ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "full": {"task": "arithmetic", **_BF16},
    "semi": {"task": "arithmetic", "block_length": 8, **_BF16},
    "dream": {"task": "arithmetic", "backend": "tiny-arithmetic-dream", **_BF16},
    "long": {
        "task": "arithmetic",
        "task_kwargs": {"max_steps": 8},
        "backend": "tiny-arithmetic-dream",
        **_BF16,
    },
    "sudoku": {"task": "sudoku", **_BF16},
}

# Where policies are only transferred to: fewer settings, of the rules that make up the frontier.
STRONG_RULES: dict[str, tuple[str, tuple[float, ...]]] = {
    "confidence": ("k", (1, 2, 3, 4, 6, 8)),
    "fast-dllm": ("threshold", (0.5, 0.7, 0.9, 0.99)),
    "fast-dllm-factor": ("factor", (0.1, 0.5, 1.0, 2.0)),
    "eb-sampler": ("gamma", (0.01, 0.1, 0.3, 1.0)),
}


def heuristics(environment: str) -> list[Strategy]:
    """The rule-based strategies an environment's policies are compared with."""
    if environment in ("full", "semi"):
        return sweep("full")
    return strategies_of(STRONG_RULES)


DECODINGS = ("sample", "deterministic")
BETAS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
TARGETS = (2, 4, 6, 9, 13, 18, 24)


def evaluations() -> list[tuple[str, str, str]]:
    """(environment, run, options of the agent) of everything that is evaluated for each training seed."""
    elsewhere = ("semi", "any-first", "any", "sudoku")
    compared = [name for name in RUNS if name not in elsewhere]
    jobs = [("full", name, "dpls" if name == "dpls" else "sample") for name in compared]
    jobs += [("full", "full", "deterministic"), ("full", "base", "deterministic")]
    jobs += [("full", "full", f"sample,beta={beta:g}") for beta in BETAS if beta != 1]
    jobs += [("full", "any", f"{d},target_steps={target}") for target in TARGETS for d in DECODINGS]
    jobs += [("semi", "semi", decoding) for decoding in DECODINGS]
    jobs += [(e, "full", decoding) for e in ("dream", "long", "sudoku") for decoding in DECODINGS]
    jobs += [("sudoku", "sudoku", decoding) for decoding in DECODINGS]
    return jobs
