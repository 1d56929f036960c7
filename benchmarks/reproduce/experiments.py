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
        start_steps: Of the success model that most of those begin with that are only compared.
        ablation_steps: Of those from there on.
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
    start_steps: int
    ablation_steps: int
    eval_episodes: int
    problems: int

    @property
    def alone_steps(self) -> int:
        """Of those with a success model of their own, its steps included."""
        return self.start_steps + self.ablation_steps


FULL = Budget("full", SEEDS, 1_200_000, 600_000, 900_000, 800_000, 150_000, 60_000, 140_000, 256, 1000)
QUICK = Budget("quick", (0,), 30_000, 30_000, 10_000, 10_000, 10_000, 10_000, 10_000, 64, 100)
TINY = Budget("tiny", (0,), 2_000, 2_000, 2_000, 2_000, 2_000, 1_000, 1_000, 8, 4)  # to be interrupted

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


def _compared(shipped: str = "grpo-full", **changes: Any) -> Run:
    """From its seed's success model; on confidences and with the paper's sampler unless said otherwise."""
    policy = {"sampler": "bernoulli", **_plus(), **changes.pop("policy", {})}
    return Run(shipped, {**changes, "warm_start": None, "policy": policy}, begins_with="start")


def _compared_alone(**changes: Any) -> Run:
    """The same, from a success model of its own: it has other inputs, or counts something else as success."""
    run = _compared(**changes)
    return Run(run.shipped, {**run.changes, "warm_start": "success"}, "alone_steps")


# In the order they are trained: whatever another one begins with comes before it.
RUNS: dict[str, Run] = {
    "full": Run("scratch/grpo", {}, "main_steps"),
    "any-first": Run("scratch/grpo-any", {}, "any_steps", begins_with="full"),
    "any": Run(
        "scratch/grpo-any", {"env": {"target_steps": [1.5, 24]}}, "further_steps", begins_with="any-first"
    ),
    "semi": Run("grpo-semi", {}, "semi_steps"),
    "start": Run("success-full", {"policy": _plus()}, "start_steps"),
    "base": _compared(),
    "additive": _compared(env={"reward": "additive"}),
    "dpls": _compared(policy={"sampler": "dpls"}),
    "steered": _compared(expert="fast-dllm:threshold=0.9", expert_block_length=8, num_experts=1),
    "grpo": _compared(policy={"sampler": "bits"}),
    "ppo": _compared("ppo-full", policy={"sampler": "bits"}),
    "a2c": _compared("a2c-full"),
    "top-k": _compared_alone(policy=_plus("top_k")),
    "hidden": _compared_alone(policy=_plus("hidden")),
    # action_mask is the mask again in full diffusion, so dropping the mask drops it, too
    "no-mask": _compared_alone(policy=_without("mask", "action_mask")),
    "no-time": _compared_alone(policy=_without("progress")),
    "answer-only": _compared_alone(env={"reward_metric": "answer_correct"}),
    "alpha-0.3": _alpha(0.3),
    "alpha-10": _alpha(10.0),
    "sudoku": Run("scratch/grpo", {"env": {"task": "sudoku"}}, "short_steps"),
}


_EVALUATIONS = {  # on the way, of trainings that are long or of which the best moment counts
    **dict.fromkeys(("main_steps", "any_steps", "further_steps"), 8),
    **dict.fromkeys(("start_steps", "ablation_steps", "alone_steps"), 4),
}


def run_config(name: str, seed: int, budget: Budget) -> TrainConfig:
    """The configuration of a run, but for ``init_from``, which depends on where the other run lies."""
    run = RUNS[name]
    steps = getattr(budget, run.steps)
    evaluations = _EVALUATIONS.get(run.steps, 2)
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
