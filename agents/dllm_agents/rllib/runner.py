"""How RLlib's processes collect episodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

ENDS = "unmask"


class WholeEpisodeRunner(SingleAgentEnvRunner):  # type: ignore[misc]  # Ray's classes are untyped
    """Returns episodes when they are over, every one of them, and never sees the same problems as another.

    The only reward comes at the end, so an episode is worth learning from when it is complete. RLlib's own
    ``batch_mode="complete_episodes"`` is not the way to get there (ray 2.60, ``single_agent_env_runner.py``):
    it stops as soon as so many episodes are over and throws away those still running, so that slow episodes
    are seen less often than fast ones; and it seeds the environment anew in every call, so that training
    would go on with the same few problems for ever. Here RLlib samples a number of steps
    (``batch_mode="truncate_episodes"``) and the beginnings of episodes wait for their ends.

    The seeds of RLlib's runners are 1 apart, as are those of the rows of one environment: rows of different
    runners would decode the same problems. Here they are drawn from the configuration's seed, the runner's
    number and the steps taken so far, so that they also differ after a restart.
    """

    def __init__(self, **kwargs: Any) -> None:
        self._begun: dict[str, SingleAgentEpisode] = {}
        super().__init__(**kwargs)

    def make_env(self) -> None:
        """Makes the environment, whose dLLM goes where Ray wants this process to compute.

        A process that was given a GPU sees no other. One that was given none sees them all (ray 2.60,
        ``_private/accelerators``), and all such processes would load their dLLM on the first.
        """
        given = self.config.env_config
        backend_kwargs = dict(given.get("backend_kwargs") or {})
        chosen = "device" in backend_kwargs or "device_map" in backend_kwargs
        remote = bool(self.worker_index)
        if remote and not chosen and not self.config.num_gpus_per_env_runner and torch.cuda.is_available():
            backend_kwargs["device"] = "cpu"
            self.config.environment(env_config={**given, "backend_kwargs": backend_kwargs})
        super().make_env()

    def sample(self, **kwargs: Any) -> list[SingleAgentEpisode]:
        """Samples as RLlib does, but returns no episode before its end; the list may be empty."""
        ended = []
        for chunk in super().sample(**kwargs):
            episode = self._begun.pop(chunk.id_, None)
            if episode is None:
                episode = chunk
            else:
                episode.concat_episode(chunk)
            if episode.is_done:
                ended.append(episode.to_numpy())
                self._log_end(episode.get_infos(-1))
            else:
                self._begun[episode.id_] = episode
        # RLlib would add up the chunks, which are one episode by now.
        self._done_episodes_for_metrics = list(ended)
        self._ongoing_episodes_for_metrics.clear()
        return ended

    def _log_end(self, info: Mapping[str, Any]) -> None:
        """Adds an episode to the sums that the results of an iteration hold under ``ENDS``."""
        self.metrics.log_value((ENDS, "episodes"), 1, reduce="sum")
        for key in ("is_success", "nfe", "empty_actions"):
            self.metrics.log_value((ENDS, key), int(info[key]), reduce="sum")

    def _try_env_reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._begun.clear()  # all rows start anew
        if seed is not None:
            words = [self.config.seed, int(self.config.in_evaluation), self.worker_index]
            words.append(self.num_env_steps_sampled_lifetime)
            seed = int(np.random.SeedSequence(words).generate_state(1)[0])
        return super()._try_env_reset(seed=seed, options=options)
