"""Keywords a factory does not take end in one clear error, whichever registry it came from."""

import pytest

from dllm_gym.arguments import call_named
from dllm_gym.backends import load_backend
from dllm_gym.strategies import make_strategy
from dllm_gym.tasks import load_task


def test_keywords_are_passed_on():
    assert call_named("pair", lambda a, b=2: (a, b), {"a": 1}) == (1, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_strategy("confidence", j=1), r"strategy 'confidence': .*'j'; it accepts k"),
        (lambda: load_task("sudoku", boxes=4), r"task 'sudoku': .*'boxes'; it accepts .*size"),
        (
            lambda: load_backend("tiny-sudoku", typ="auto"),
            r"backend 'tiny-sudoku': .*'typ'; it accepts .*dtype",
        ),
    ],
)
def test_unknown_keywords_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_error_inside_the_factory_stays_what_it_is():
    def broken():
        raise TypeError("inside")

    with pytest.raises(TypeError, match="inside"):
        call_named("broken", broken, {})
