"""The rules that take tokens back, over whole episodes, against literal readings: one row, with lists."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_gym.evaluation import evaluate
from dllm_gym.strategies import make_strategy

quick = settings(max_examples=12, deadline=None)
RULES = ("rcr", "remedi", "wino", "remdm", "saber", "t2m", "joint-threshold")  # prism needs a head


# Brute force: what stands after a step, of one row ----------------------------------------------------------


def highest(scores, count):
    """The keys of the ``count`` largest values; of equal ones the smallest keys."""
    return sorted(scores, key=lambda i: (-scores[i], i))[: max(count, 0)]


def slow_rcr(row, memory, k):
    for i in row["masked"]:
        memory[i] = row["confidence"][i]
    return highest({i: memory[i] for i in row["allowed"]}, k * (row["block_step"] + 1) - row["fixed"])


def slow_remedi(row, memory, k):
    scores = {i: row["confidence" if i in row["masked"] else "written"][i] for i in row["allowed"]}
    return highest(scores, k * (row["block_step"] + 1) - row["fixed"])


def slow_prism(row, memory, k, back):
    standing, masked = row["standing"], row["masked"]
    worst = []
    if len(standing) > back and len(masked) > back:
        worst = highest({i: -row["quality"][i] for i in standing}, back)
    kept = [i for i in standing if i not in worst]
    wanted = k * (row["block_step"] + 1) - row["fixed"] - len(kept)
    new = highest({i: row["confidence"][i] for i in masked}, wanted)
    return kept + new + highest({i: row["quality"][i] for i in worst}, wanted - len(new))


def slow_wino(row, memory, threshold, doubt):
    confidence = {i: row["confidence"][i] for i in row["masked"]}
    draft = [i for i in highest(confidence, len(confidence)) if confidence[i] > threshold]
    draft = draft[: min(max(int(0.7 * len(confidence)), 5), 20)] or highest(confidence, 1)
    last_accept = 30 if row["block_step"] == 0 else memory["accepted"]
    memory["accepted"] = len(draft)
    doubted = {i: -row["written"][i] for i in row["standing"] if row["written"][i] < doubt}
    if len(draft) <= 1:
        doubted = {}
    back = highest(doubted, last_accept - 1) if len(doubted) >= last_accept else list(doubted)
    return draft + [i for i in row["standing"] if i not in back]


def slow_remdm(row, memory, steps, schedule, eta):
    for i in row["masked"]:
        memory[i] = row["confidence"][i]
    if row["block_step"] == 0:
        memory["at"] = 0

    def alpha(step):
        t = 1 - step / steps
        if schedule != "loop":
            return 1 - t
        return 0.9 * (1 - t) / 0.45 if t > 0.55 else 0.9 if t > 0.05 else 1 - 0.1 * t / 0.05

    while memory["at"] < steps:
        now, then = alpha(memory["at"]), alpha(memory["at"] + 1)
        memory["at"] += 1
        largest = 1.0 if now == 0 else min(1.0, (1 - then) / now)
        sigma = min(eta, largest) if schedule in ("cap", "loop") else eta * largest
        if schedule == "loop" and (now != 0.9 or then != 0.9):
            sigma = 0.0
        total = sum(math.exp(-memory[i]) for i in row["standing"])
        draws = memory["rng"].random(len(row["mask"]))
        after = []
        for i in row["allowed"]:
            if i in row["standing"]:
                own = sigma * math.exp(-memory[i]) / total if schedule == "conf" else sigma
                stands = draws[i] >= own
            else:
                own = 0.0 if schedule == "conf" else sigma
                stands = draws[i] < (then - (1 - own) * now) / (1 - now)
            after += [i] * bool(stands)
        if set(after) != set(row["standing"]):
            return after
    return row["standing"]


def slow_saber(row, memory, least):
    now = [c if m else w for c, w, m in zip(row["confidence"], row["written"], row["mask"], strict=True)]
    accepted = memory.setdefault("accepted", {})
    threshold = sum(accepted.values()) / len(accepted) if accepted else 1.0
    new = [i for i in row["masked"] if now[i] > threshold]
    if len(new) < least:
        new = highest({i: now[i] for i in row["masked"]}, least)
    accepted |= {i: now[i] for i in new}
    before = memory.get("before", [0.0] * len(now))
    memory["before"] = now
    revealed = sorted(row["standing"] + new)
    if len(revealed) == len(row["allowed"]):
        return revealed
    r = min(max(least // 2, math.ceil(len(new) / 8)), len(new) - 1)
    back = highest({i: before[i] - now[i] for i in revealed}, r)
    return [i for i in revealed if i not in back]


def surer_of_another(row, limit):
    sure = [i for i in row["standing"] if row["predicted_confidence"][i] > limit]
    return [i for i in sure if row["predicted"][i] != row["tokens"][i]]


def slow_joint(row, memory, threshold, edit, post):
    """Without its limit, which takes an environment that asks for confirmation to be reached."""
    confidence = {i: row["confidence"][i] for i in row["masked"]}
    new = [i for i in confidence if confidence[i] > threshold] or highest(confidence, 1)
    return new + [i for i in row["standing"] if i not in surer_of_another(row, edit)]


def slow_t2m(row, memory, threshold, signal, limit, times):
    confidence = {i: row["confidence"][i] for i in row["masked"]}
    new = [i for i in confidence if confidence[i] > threshold] or highest(confidence, 1)
    now = [c if m else w for c, w, m in zip(row["confidence"], row["written"], row["mask"], strict=True)]
    before = memory.get("before") if row["block_step"] else None
    if signal == "low-prob":
        strength = {i: -now[i] for i in row["standing"] if now[i] < limit}
    elif signal == "t2t-remask":
        strength = {i: row["predicted_confidence"][i] for i in surer_of_another(row, limit)}
    elif before is None:
        strength = {}
    else:
        strength = {i: before[i] - now[i] for i in row["standing"] if before[i] - now[i] > limit}
    memory["before"] = now if row["standing"] else None
    strength = {i: value for i, value in strength.items() if row["remasks"][i] < times}
    back = highest(strength, max(1, int(len(row["standing"]) * 0.25)))
    return new + [i for i in row["standing"] if i not in back]


CASES = [
    ("rcr", slow_rcr, {"k": 1}),
    ("rcr", slow_rcr, {"k": 3}),
    ("remedi", slow_remedi, {"k": 1}),
    ("remedi", slow_remedi, {"k": 2}),
    ("prism", slow_prism, {"k": 1, "back": 1}),
    ("prism", slow_prism, {"k": 2, "back": 1}),
    ("prism", slow_prism, {"k": 1, "back": 3}),
    ("prism", slow_prism, {"k": 3, "back": 0}),
    ("wino", slow_wino, {"threshold": 0.25, "doubt": 0.75}),
    ("wino", slow_wino, {"threshold": 0.5, "doubt": 1.0}),
    ("remdm", slow_remdm, {"steps": 5, "schedule": "cap", "eta": 0.4}),
    ("remdm", slow_remdm, {"steps": 4, "schedule": "rescale", "eta": 0.5}),
    ("remdm", slow_remdm, {"steps": 6, "schedule": "conf", "eta": 1.0}),
    ("remdm", slow_remdm, {"steps": 20, "schedule": "loop", "eta": 0.1}),
    ("saber", slow_saber, {"least": 1}),
    ("saber", slow_saber, {"least": 2}),
    ("saber", slow_saber, {"least": 4}),
    ("t2m", slow_t2m, {"threshold": 0.5, "signal": "low-prob", "limit": 0.5, "times": 2}),
    ("t2m", slow_t2m, {"threshold": 0.75, "signal": "logit-diff", "limit": 0.25, "times": 1}),
    ("t2m", slow_t2m, {"threshold": 0.75, "signal": "t2t-remask", "limit": 0.25, "times": 2}),
    ("joint-threshold", slow_joint, {"threshold": 0.75, "edit": 0.5, "post": 16}),
    ("joint-threshold", slow_joint, {"threshold": 0.5, "edit": 0.0, "post": 1}),
]  # fmt: skip
every_case = pytest.mark.parametrize(
    ("name", "slow", "parameters"), CASES, ids=lambda one: getattr(one, "__name__", str(one))
)


# Episodes ---------------------------------------------------------------------------------------------------


class Episodes:
    """Rows that decode and begin again when they are done, as an environment in blocks would show them."""

    def __init__(self, seed, rows, length, block_length, most=9):
        self.rng, self.most = np.random.default_rng(seed), most
        self.block = np.arange(length) // block_length
        self.mask = np.ones((rows, length), dtype=bool)
        self.remasks = np.zeros((rows, length), dtype=int)
        self.at, self.used, self.in_block = (np.zeros(rows, dtype=int) for _ in range(3))
        self.memories = [{} for _ in range(rows)]
        for row in range(rows):
            self.begin(row)

    def begin(self, row):
        self.mask[row], self.remasks[row] = True, 0
        self.at[row] = self.used[row] = self.in_block[row] = 0
        self.memories[row].clear()

    def observe(self):
        rows, length = self.mask.shape
        grain = self.rng.choice([2, 4, 16])  # few distinct values, so that ties abound; all are exact
        drawn = (self.rng.integers(0, grain + 1, (3, rows, length)) / grain).astype(np.float32)
        confidence, written, quality = drawn
        inside = self.block == self.at[:, None]
        tokens, predicted = self.rng.integers(0, 3, (2, rows, length))
        return {
            "tokens": tokens,
            "predicted": predicted,
            "predicted_confidence": confidence,
            "confidence": np.where(self.mask, confidence, np.float32(1)),
            "written": np.where(self.mask, np.float32(0), written),
            "quality": np.where(self.mask, np.float32(0), quality),
            "mask": self.mask.astype(np.int8),
            "remasks": self.remasks.astype(np.float32),
            "action_mask": (inside & (self.mask | (self.remasks < self.most))).astype(np.int8),
            "progress": (self.used[:, None] / length).astype(np.float32),
        }

    def rows(self, observation):
        for at in range(len(self.mask)):
            row = {key: values[at].tolist() for key, values in observation.items()}
            row["allowed"] = [i for i, bit in enumerate(row["action_mask"]) if bit]
            row["masked"] = [i for i in row["allowed"] if row["mask"][i]]
            row["standing"] = [i for i in row["allowed"] if not row["mask"][i]]
            row["fixed"] = int((self.block == self.at[at]).sum()) - len(row["allowed"])
            yield {**row, "block_step": int(self.in_block[at])}, self.memories[at]

    def apply(self, action, observation):
        allowed = observation["action_mask"] != 0
        back = allowed & ~self.mask & (action == 0)
        self.mask = np.where(allowed, action == 0, self.mask)
        self.remasks += back
        self.used += 1
        self.in_block += 1
        for row in range(len(self.mask)):
            if not (self.mask[row] & (self.block == self.at[row])).any():
                self.at[row] += 1
                self.in_block[row] = 0
            if self.at[row] > self.block[-1]:
                self.begin(row)


sizes = st.tuples(
    st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 9])
)


@every_case
@quick
@given(sizes)
def test_every_step_of_an_episode_is_that_of_the_brute_force(name, slow, parameters, size):
    episodes, rule = Episodes(*size), make_strategy(name, **parameters)
    assert rule.parameters == parameters
    generators = [np.random.default_rng([0, row]) for row in range(size[1])]  # of rules that draw
    for _ in range(16):
        observation = episodes.observe()
        action = rule.act(observation)
        assert action.dtype == np.int8
        expected = np.zeros_like(action)
        for at, (row, memory) in enumerate(episodes.rows(observation)):
            memory["rng"] = generators[at]
            expected[at, slow(row, memory, **parameters)] = 1
        np.testing.assert_array_equal(action, expected)
        episodes.apply(action, observation)


@every_case
def test_a_row_alone_does_what_it_does_in_a_batch(name, slow, parameters):
    episodes = Episodes(7, 3, 8, 4)
    together = make_strategy(name, **parameters)
    alone = [make_strategy(name, **parameters) for _ in range(3)]
    if name == "remdm":
        together.seed(range(3), range(3))
        for row, rule in enumerate(alone):
            rule.seed([0], [row])
    for _ in range(10):
        observation = episodes.observe()
        action = together.act(observation)
        for row, rule in enumerate(alone):
            own = rule.act({key: value[row] for key, value in observation.items()})
            np.testing.assert_array_equal(own, action[row])
        episodes.apply(action, observation)


@every_case
def test_what_is_full_stands_unless_it_is_doubted(name, slow, parameters):
    """What ``finish="confirm"`` asks; rows without candidates and an empty batch are no trouble either."""
    rule = make_strategy(name, **parameters)
    episodes = Episodes(3, 2, 6, 6)
    while episodes.used[0] == 0 or episodes.mask[0].any():  # until the first row is about to end
        observation = episodes.observe()
        action = rule.act(observation)
        if action[0].all():
            break
        episodes.apply(action, observation)
    agreed = {"written": np.ones((2, 6), np.float32), "tokens": observation["predicted"]}
    full = {**observation, **agreed, "mask": np.zeros_like(observation["mask"])}
    actions = [rule.act(full)[0] for _ in range(20)]
    assert actions[-1].all()
    assert name == "remdm" or actions[0].all()  # that one goes on until its steps are over
    observation["action_mask"][0] = observation["mask"][0] = 0
    assert not rule.act(observation)[0].any()
    assert rule.act({key: value[:0] for key, value in observation.items()}).shape == (0, 6)


@pytest.mark.parametrize("name", ["rcr", "remedi", "prism", "wino", "saber"])
@quick
@given(sizes)
def test_a_step_per_position_is_enough(name, size):
    """As the definitions promise, however often tokens go back."""
    seed, _, length, block_length, _ = size
    episodes, rule = Episodes(seed, 1, length, block_length), make_strategy(name)
    blocks = -(-length // block_length)
    for _ in range(length):
        observation = episodes.observe()
        episodes.apply(rule.act(observation), observation)
        if episodes.used[0] == 0:  # it began again
            return
    raise AssertionError(f"{length} positions in {blocks} blocks took more than {length} steps")


# On the embedded dLLMs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_rules_play_by_rules_that_let_them(name):
    result = evaluate(name, 6, task="arithmetic", block_length=16)
    assert result.environment["actions"] == ("edit" if name == "joint-threshold" else "set-state")
    forbidden = evaluate(name, 2, task="arithmetic", block_length=16, forbid_remask=True)
    assert forbidden.records.metrics["remasks"].sum() == 0
    assert "[MASK]" not in "".join(forbidden.records.completion)


def test_steps_per_block_are_the_forwards():
    for name in ("rcr", "remedi"):
        assert set(evaluate(f"{name}:k=4", 4, task="sudoku", block_length=8).records.nfe) == {4}
    assert evaluate("remdm:steps=5", 8, task="sudoku").records.nfe.max() <= 5


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("rcr", {"k": 0}, "k must be an integer >= 1, got 0"),
        ("remedi", {"k": 1.5}, "k must be an integer >= 1, got 1.5"),
        ("prism", {"k": 0}, "k must be an integer >= 1, got 0"),
        ("prism", {"back": -1}, "back must be an integer >= 0, got -1"),
        ("wino", {"doubt": 2}, r"doubt must be a finite number in \[0, 1\], got 2"),
        ("remdm", {"schedule": "square"}, "one of cap, rescale, conf, loop, got 'square'"),
        ("remdm", {"eta": -1}, r"eta must be a finite number in \[0, 1\], got -1"),
        ("remdm", {"steps": 0}, "steps must be an integer >= 1, got 0"),
        ("saber", {"least": 0}, "least must be an integer >= 1, got 0"),
        ("t2m", {"signal": "t2t"}, "one of low-prob, t2t-remask, logit-diff, got 't2t'"),
        ("joint-threshold", {"edit": -1}, r"edit must be a finite number in \[0, 1\], got -1"),
        ("joint-threshold", {"post": 0}, "post must be an integer >= 1, got 0"),
        ("t2m", {"limit": 2}, r"limit must be a finite number in \[0, 1\], got 2"),
        ("t2m", {"times": 0}, "times must be an integer >= 1, got 0"),
    ],
)
def test_parameters_are_checked_at_the_door(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        make_strategy(name, **parameters)
