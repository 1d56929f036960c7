"""How threads wait is decided at import, unless somebody else has decided."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dllm_gym.threads import CHOSEN_BY

ASKED = "print(__import__('os').environ.get('OMP_WAIT_POLICY'))"


def policy_after(code: str, **environment: str) -> str:
    """What a fresh process says of its policy of waiting."""
    clean = {name: value for name, value in os.environ.items() if name not in CHOSEN_BY}
    command = [sys.executable, "-c", f"{code}; {ASKED}"]
    return subprocess.run(
        command, env=clean | environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_threads_sleep_while_they_wait():
    assert policy_after("import dllm_gym") == "PASSIVE"


@pytest.mark.parametrize("name", CHOSEN_BY)
def test_what_a_user_chose_stays(name):
    expected = "ACTIVE" if name == "OMP_WAIT_POLICY" else "None"
    assert (
        policy_after("import dllm_gym", **{name: "ACTIVE" if name == "OMP_WAIT_POLICY" else "7"}) == expected
    )


def test_a_loaded_torch_has_decided():
    assert policy_after("import torch, dllm_gym") == "None"
