"""Runs any agent over a task's problems: accuracy against steps, with confidence intervals."""

from dllm_gym.evaluation.agents import Agent, PredictAgent, as_agent
from dllm_gym.evaluation.analysis import Analysis, analyze
from dllm_gym.evaluation.comparison import Comparison, Gap, Lead, compare
from dllm_gym.evaluation.profiles import Profile, profile
from dllm_gym.evaluation.recording import Recording
from dllm_gym.evaluation.results import EpisodeRecords, EvaluationResult
from dllm_gym.evaluation.running import evaluate
from dllm_gym.evaluation.sweeps import strategies_of, sweep

__all__ = [
    "Agent",
    "Analysis",
    "Comparison",
    "EpisodeRecords",
    "EvaluationResult",
    "Gap",
    "Lead",
    "PredictAgent",
    "Profile",
    "Recording",
    "analyze",
    "as_agent",
    "compare",
    "evaluate",
    "profile",
    "strategies_of",
    "sweep",
]
