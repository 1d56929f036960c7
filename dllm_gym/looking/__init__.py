"""Things to look at: films of episodes, a player for the terminal, a game, a report."""

from __future__ import annotations

from dllm_gym.looking.film import Film, film

__all__ = ["Film", "film"]
