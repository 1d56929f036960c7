"""How agents decode, side by side: recordings, numbers, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm_gym.evaluation.agents import as_agent
from dllm_gym.evaluation.home import at_home
from dllm_gym.evaluation.profiles import Profile, profile
from dllm_gym.evaluation.recording import Recording
from dllm_gym.evaluation.running import evaluate


@dataclass(frozen=True)
class Analysis:
    """Several decoders side by side.

    Attributes:
        recordings: Their episodes.
        profiles: One per recording.
    """

    recordings: Sequence[Recording]
    profiles: Sequence[Profile]

    def to_json(self) -> list[dict[str, Any]]:
        """One JSON object per decoder: every number, and what the episodes were decoded in."""
        return [
            {**profile.to_json(), "environment": dict(recording.environment)}
            for profile, recording in zip(self.profiles, self.recordings, strict=True)
        ]

    def plot(self, path: str | Path | None = None) -> Any:
        """One page of panels, a heat map and a colour for each decoder.

        Args:
            path: Where to write the picture (PNG, PDF, ...); ``None`` writes nothing.

        Returns:
            The matplotlib ``Figure``.
        """
        from dllm_gym.evaluation.analysis_plots import analysis_figure
        from dllm_gym.evaluation.figures import save_figure

        figure = analysis_figure(self.profiles)
        if path is not None:
            save_figure(figure, path)
        return figure


def analyze(
    agents: Iterable[Any],
    episodes: int = 200,
    split: str = "test",
    *,
    text_only: bool = False,
    on_result: Callable[[Profile], None] | None = None,
    **kwargs: Any,
) -> Analysis:
    """Shows how agents decode: in which order, how fast, how sure, and whether being sure means being right.

    Args:
        agents: Whatever ``as_agent`` takes, and episodes recorded before (``Recording``), in any number.
        episodes: As in ``evaluate``, like the arguments that follow.
        split: See there.
        text_only: Leave out the positions from the first end token on, which otherwise are part of the order.
        on_result: Called with every agent's profile as soon as it is there.
        **kwargs: Further arguments of ``evaluate``; all agents decode in one place, that of the first policy
            among them where nothing is said.

    Returns:
        The recordings, the numbers, and the plot.

    Raises:
        ValueError: For no agents, and what ``evaluate`` raises.
    """
    recordings, profiles = [], []
    everyone = [agent if isinstance(agent, Recording) else as_agent(agent) for agent in agents]
    kwargs = at_home(everyone, kwargs)
    for agent in everyone:
        recording = agent if isinstance(agent, Recording) else None
        if recording is None:
            recording = evaluate(agent, episodes, split, record=True, **kwargs).recording
        assert recording is not None
        recordings.append(recording)
        profiles.append(profile(recording.text_only() if text_only else recording))
        if on_result is not None:
            on_result(profiles[-1])
    if not profiles:
        raise ValueError("nothing to analyze: give at least one agent or recording")
    return Analysis(recordings, profiles)
