"""A film that is being watched: what the keys do, and when the next frames are due. No terminal."""

from __future__ import annotations

from dataclasses import dataclass

HELP = "space pause   ← → step   + - speed   r again   q quit"
_FASTER = 1.5


@dataclass
class Playback:
    """Where the spectator is in frames that may still be in the making.

    Attributes:
        speed: Frames per second.
        known: How many frames there are so far.
        complete: Whether no more will come.
        at: Which of them is shown; -1 before the first.
        playing: Runs by itself.
        closed: The spectator has had enough.
    """

    speed: float
    known: int = 0
    complete: bool = False
    at: int = -1
    playing: bool = True
    closed: bool = False
    _next: float = 0.0  # when the next frame is due
    _one_more: bool = False  # a step is wanted that is not there yet

    def __post_init__(self) -> None:
        if not self.speed > 0:
            raise ValueError(f"speed must be above 0 frames per second, got {self.speed}")

    @property
    def waits(self) -> bool:
        """Whether there is nothing to do but to bring the next frames."""
        wanted = self._one_more or self.playing
        return wanted and not self.complete and self.at == self.known - 1

    @property
    def played_out(self) -> bool:
        """Whether the last frame there will ever be is shown."""
        return self.complete and self.at == self.known - 1

    @property
    def note(self) -> str:
        """Where the spectator is, in words."""
        pace = "the end" if self.played_out else f"{self.speed:.2g} per second" if self.playing else "paused"
        return f"frame {self.at + 1} of {self.known}{'' if self.complete else ' so far'}   {pace}"

    def press(self, key: str, now: float) -> None:
        """What a key does; unknown ones do nothing."""
        if key == "q":
            self.closed = True
        elif key == " ":
            self.playing = not self.playing
            self._next = now + 1 / self.speed
        elif key == "right":
            self.playing, self._one_more = False, True
        elif key == "left":
            self.playing, self._one_more, self.at = False, False, max(self.at - 1, 0)
        elif key == "r":
            self.playing, self.at, self._next = True, 0, now + 1 / self.speed
        elif key in ("+", "-"):
            self.speed = min(max(self.speed * (_FASTER if key == "+" else 1 / _FASTER), 0.2), 60.0)

    def advance(self, now: float) -> None:
        """Goes on to the next frames if they are there and due."""
        due = self._one_more or (self.playing and now >= self._next)
        if due and self.at < self.known - 1:
            self.at += 1
            self._one_more = False
            self._next = now + 1 / self.speed

    def patience(self, now: float) -> float | None:
        """Seconds until the next frames are due; ``None`` if only a key can change anything."""
        if self.playing and not self.played_out:
            return max(self._next - now, 0.0)
        return None
