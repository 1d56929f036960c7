"""Trainings that die on the way and go on: what several kinds of training are tested by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dllm_agents import posttrain
from dllm_agents.posttraining import running


def check_lost_work_is_done_again(make: Callable[[Path], Any], directory: Path) -> None:
    """``make`` a ``Training`` of four steps or more: work after the last saved state is done again, alike."""
    losses = dict(make(directory / "whole").train())
    part = make(directory / "parts")
    for step, _ in part.train(save_every=-1.0):
        if step == 2:
            break
    for step, _ in part.train(save_every=1e9):  # goes on without saving, then dies
        if step == 4:
            break
    last = make(directory / "parts")
    assert last.step == 2
    assert dict(last.train()) == {step: loss for step, loss in losses.items() if step > 2}


def posttrain_until(stop: int, config: Any, directory: Path) -> None:
    """A post-training that is interrupted in round ``stop``; every round saves its state."""
    original = running._Run._one_round

    def interrupted(run: Any, done: float) -> None:
        if run.round == stop:
            raise KeyboardInterrupt
        original(run, done)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running._Run, "_one_round", interrupted)
        with pytest.raises(KeyboardInterrupt):
            posttrain(config, directory, save_every=0.0)
