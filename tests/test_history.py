"""The steps of rows under way: whatever order episodes end in, each gets its own steps back."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dllm_agents.sb3.history import Episode, History


@given(
    st.integers(1, 4),
    st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=25),
    st.data(),
)
def test_episodes_get_their_own_steps(rows, ends, data):
    history, written = History(rows), [[] for _ in range(rows)]
    pending: list[tuple[Episode, list[int]]] = []
    for at, end in enumerate(ends):
        values = np.arange(rows) + 10 * at
        history.add({"value": values, "pair": np.stack([values, -values], axis=1)})
        for row in range(rows):
            written[row].append(int(values[row]))
            if end[row]:
                pending.append((history.finish(row, float(row), 1.0), written[row]))
                written[row] = []
        if data.draw(st.booleans()):
            history.forget(episode for episode, _ in pending)
            copy = History(rows)
            copy.restore(history.state())
            history = copy
        if data.draw(st.booleans()):
            got = history.gather([episode for episode, _ in pending])
            expected = [value for _, steps in pending for value in steps]
            assert got["value"].tolist() == expected
            assert got["pair"].tolist() == [[value, -value] for value in expected]
            assert [len(episode) for episode, _ in pending] == [len(steps) for _, steps in pending]
            pending = []
            history.forget()


def test_a_history_does_not_grow_without_end():
    history = History(2)
    for at in range(100):
        history.add({"value": np.full(2, at)})
        if at % 5 == 4:
            for row in range(2):
                history.finish(row, 0.0, 0.0)
            history.forget()
    assert len(history.state()["steps"].get("value", ())) == 0


def test_nothing_gathered_of_nothing():
    assert History(3).gather([]) == {}
