"""The rules of 2025 and 2026, over whole episodes, against literal readings: one row, with lists."""

from __future__ import annotations

import json
import math
import statistics
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_gym.evaluation import evaluate
from dllm_gym.strategies import make_strategy, strategy_names
from dllm_gym.strategies.memory import Remembering

quick = settings(max_examples=20, deadline=None)
VOCABULARY = 5


# Brute force: one row, lists, positions found by scanning -------------------------------------------------


def surest(row, among, count=1, key="confidence", sign=1):
    """The first ``count`` positions of ``among`` from the largest value down (``sign`` -1: up)."""
    order = sorted(among, key=lambda i: (-sign * row[key][i], i))
    return order[:count]


def reaching(row, among, threshold):
    return [i for i in among if row["confidence"][i] >= threshold]


def slow_local_leap(row, memory, threshold, relaxed, radius):
    anchors = reaching(row, row["candidates"], threshold)
    near = [i for i in row["candidates"] if any(abs(i - anchor) <= radius for anchor in anchors)]
    return anchors + reaching(row, near, relaxed) + surest(row, row["candidates"])


def slow_ass(row, memory, growth):
    length, last = len(row["confidence"]), 0
    while growth ** (last + 1) <= length:
        last += 1
    if row["step"] >= last - 1:
        return row["candidates"]
    return surest(row, row["candidates"], int(growth ** row["step"]))


def slow_eoser(row, memory, damping, k):
    length = len(row["confidence"])
    share = min(1.0, row["mask"].count(0) / (length - k)) if length > k else 1.0
    damped = [
        c * (damping + (1 - damping) * share) if end else c
        for c, end in zip(row["confidence"], row["ends"], strict=True)
    ]
    return surest({"damped": damped}, row["candidates"], k, "damped")


FREQUENCIES = [3, 0, 5]  # of the tokens 0, 1, 2; there are more tokens than that


def slow_pc_sampler(row, memory, decay, k, cap, frequencies=None):
    scores = []
    for i, (c, token) in enumerate(zip(row["confidence"], row["predicted"], strict=True)):
        information = 1.0
        if frequencies is not None:
            occurs = max(FREQUENCIES[token] if token < len(FREQUENCIES) else 0, 1)
            information = -math.log(occurs / sum(FREQUENCIES) + 1e-9)
        scores.append(math.exp(-decay * i) * min(c * information, cap))
    return surest({"score": scores}, row["candidates"], k, "score")


def slow_gap(row):
    """Mean difference of the two largest logits over masked positions, and how many are revealed."""
    masked = [i for i, bit in enumerate(row["mask"]) if bit]
    tops = [[max(p, 2**-126) for p in row["top_k"][i][:2]] for i in masked]
    gap = statistics.fmean(math.log(first / second) for first, second in tops)
    return gap, len(row["mask"]) - len(masked)


def slow_window(row, block_length):
    first = row["candidates"][0] // block_length if block_length else None
    return [i for i in row["candidates"] if block_length is None or i // block_length == first]


def slow_prophet(row, memory, threshold, k, block_length=None):
    gap, revealed = slow_gap(row)
    progress = (revealed + k) / len(row["mask"])  # as in the released code, which counts this step, too
    needed = threshold if progress < 0.33 else threshold * 2 / 3 if progress < 0.67 else threshold / 3
    return row["candidates"] if gap >= needed else surest(row, slow_window(row, block_length), k)


def slow_sched(row, memory, high, low, schedule, k, rate=None, block_length=None):
    gap, revealed = slow_gap(row)
    length = len(row["mask"])
    progress = min(revealed / (length - k), 1.0) if length > k else 1.0
    needed = {
        "linear": lambda: high + (low - high) * progress,
        "cosine": lambda: low + (high - low) / 2 * (1 + math.cos(math.pi * progress)),
        "exponential": lambda: low + (high - low) * math.exp(-rate * progress),
    }[schedule]()
    if gap >= needed:
        return row["candidates"]
    return surest(row, slow_window(row, block_length), k, "entropy", sign=-1)


def slow_klass(row, memory, threshold, divergence, history, k):
    seen = memory.setdefault("divergences", [])
    seen.append(row["divergence"] if row["step"] else [math.inf] * len(row["divergence"]))
    ready = [
        i
        for i in row["candidates"]
        if row["confidence"][i] > threshold
        and row["block_step"] >= history - 1
        and len(seen) >= history
        and all(old[i] < divergence for old in seen[-history:])
    ]
    return ready or surest(row, row["candidates"], k)


def slow_credit(row, memory, threshold, weight, gain, decay):
    if row["block_step"] == 0:
        memory.clear()
    fused = {}
    for i in row["candidates"]:
        c, token = row["confidence"][i], row["predicted"][i]
        owner, credit = memory.get(i, (None, 0.0))
        credit = (credit * decay if owner == token else 0.0) + c**gain
        memory[i] = token, credit
        odds = math.inf if c == 1 else c / (1 - c) * (1 + credit) ** weight
        fused[i] = 1.0 if c == 1 else odds / (1 + odds)
    best = max(row["candidates"], key=lambda i: (round(fused[i], 6), -i))
    return [best] + [i for i in row["candidates"] if fused[i] >= threshold - 1e-9]


def slow_less(row, memory, threshold, divergence):
    before, memory["top_k"] = memory.get("top_k"), row["top_k"]

    def distance(i):
        p, q = ([*top, max(1 - sum(top), 0)] for top in (row["top_k"][i], before[i]))
        total = 0.0
        for one, other in zip(p, q, strict=True):
            for value in (one, other):
                total += value * math.log(2 * value / (one + other)) / 2 if value else 0.0
        return total

    ready = [
        i
        for i in row["candidates"]
        if before is not None
        and row["confidence"][i] >= threshold
        and row["persistence"][i] >= 1
        and distance(i) <= divergence + 1e-12
    ]
    return ready or surest(row, row["candidates"])


def slow_multi_block(row, memory, entropy, opening, block_length):
    activation = 0.7  # makes no difference
    length = len(row["mask"])
    blocks = [range(at, min(at + block_length, length)) for at in range(0, length, block_length)]

    def filled(block):
        return sum(not row["mask"][i] for i in block) / len(block)

    opened = memory.setdefault("opened", [blocks[0]])
    activated = memory.setdefault("activated", [blocks[0]])
    if len(opened) < len(blocks) and filled(opened[-1]) >= opening:
        opened.append(blocks[len(opened)])
    for before, block in pairwise(opened):
        if block not in activated and filled(before) >= activation:
            activated.append(block)
    inside = [i for i in row["candidates"] if any(i in block for block in opened)]
    chosen = [i for i in inside if row["entropy"][i] <= entropy] + surest(row, inside, 1, "entropy", -1)
    for block in blocks:
        if block in activated and any(row["mask"][i] for i in block):
            if not set(chosen) & set(block):
                chosen += surest(row, [i for i in block if i in row["candidates"]], 1, "entropy", -1)
            break
    return chosen


def slow_adablock(row, memory, threshold, sureness, delimiter, block_length, share):
    if not any(i < memory.get("end", 0) for i in row["candidates"]):
        begin, length = row["candidates"][0], len(row["mask"])
        window = range(begin, min(begin + int(share * length), length))
        delimiters = surest(row, [i for i in window if row["predicted"][i] == delimiter])
        memory["end"] = begin + block_length
        if delimiters and row["confidence"][delimiters[0]] >= sureness:
            memory["end"] = delimiters[0] + 1
    inside = [i for i in row["candidates"] if i < memory["end"]]
    return reaching(row, inside, threshold) + surest(row, inside)


def slow_slow_fast(row, memory, threshold, sureness, explore):
    window = [i for i in row["candidates"] if i < memory.get("end", 0)]
    if row["block_step"] == 0 or ("end" in memory and not window):
        begin = row["candidates"][0] if row["block_step"] == 0 else memory["end"]
        memory.clear()
        memory.update(begin=begin, estimates=[])
    if "end" not in memory:
        window = row["candidates"]
        likely = reaching(row, window, sureness)
        estimates = memory["estimates"]
        estimates.append(max(likely, default=memory["begin"]) + 1)
        if len(estimates) > 1 and statistics.pstdev(estimates[-2:]) < 1:
            memory["end"] = estimates[-1]
        elif len(estimates) == explore:
            memory["end"] = int(statistics.fmean(estimates[-2:]))
    return reaching(row, window, threshold) + surest(row, window)


def tie(row, i, j):
    return (row["attention"][i][j] + row["attention"][j][i]) / 2


def spread(order, tied):
    """Greedily: each of ``order`` that is tied to none taken before."""
    taken = []
    for i in order:
        if not any(tied(i, j) for j in taken):
            taken.append(i)
    return taken


def slow_dapd(row, memory, low, high, threshold):
    among = row["candidates"]
    if row["block_step"] == 0:
        memory["size"] = len(among)
    share = len(among) / memory["size"]
    if share < 0.5:
        return [i for i in among if row["confidence"][i] > threshold] or surest(row, among)
    tau = low + (high - low) * (1 - share)
    weight = {i: row["confidence"][i] * sum(tie(row, i, j) for j in among if j != i) for i in among}
    return spread(surest({"weight": weight}, among, len(among), "weight"), lambda i, j: tie(row, i, j) > tau)


def slow_dawn(row, memory, threshold, anchored, apart, edge, sink):
    everywhere, attention = range(len(row["mask"])), row["attention"]
    sinks = [j for j in everywhere if statistics.fmean(attention[i][j] for i in everywhere) > sink]

    def leans(i, j):
        return i != j and j not in sinks and attention[i][j] >= edge

    anchors = [j for j in everywhere if not row["mask"][j] and row["written"][j] >= threshold]
    sure = reaching(row, row["candidates"], threshold)
    leaning = [
        i for i in reaching(row, row["candidates"], anchored) if any(leans(i, anchor) for anchor in anchors)
    ]
    chosen, both = sure + leaning, [i for i in sure if i in leaning]
    rest = [
        i
        for i in reaching(row, row["candidates"], apart)
        if i not in chosen and not any(leans(i, j) for j in both)
    ]
    chosen += spread(surest(row, rest, len(rest)), lambda i, j: leans(i, j) or leans(j, i))
    return chosen or surest(row, row["candidates"])


def slow_clad(row, memory, threshold, pair):
    if row["block_step"] == 0:
        memory["size"] = len(row["candidates"])
    chosen = sorted({*reaching(row, row["candidates"], threshold), *surest(row, row["candidates"])})
    clusters = []
    for i in chosen:
        if clusters and clusters[-1][-1] == i - 1:
            clusters[-1].append(i)
        else:
            clusters.append([i])

    def reached(one, other):
        return max(
            statistics.fmean(max(row["attention"][i][j], row["attention"][j][i]) for j in other) for i in one
        )

    def score(one, other):
        return max(reached(one, other), reached(other, one))

    def others(one):
        return [other for other in clusters if other is not one]

    def best(one):
        return max(others(one), key=lambda other: score(one, other))

    def least(one):
        if len(clusters) == 2:
            return pair / memory["size"]
        return sum(score(one, other) for other in others(one)) / (len(clusters) - 1)

    waiting = []
    for one in clusters:
        if len(clusters) > 1 and best(best(one)) is one:
            other = best(one)
            if score(one, other) >= max(least(one), least(other)):
                waiting.append(min(one, other, key=lambda cluster: (len(cluster), -cluster[0])))
    return [i for cluster in clusters if cluster not in waiting for i in cluster]


CASES = [
    ("local-leap", slow_local_leap, {"threshold": 0.75, "relaxed": 0.5, "radius": 1}),
    ("local-leap", slow_local_leap, {"threshold": 1.0, "relaxed": 0.25, "radius": 3}),
    ("local-leap", slow_local_leap, {"threshold": 0.5, "relaxed": 0.5, "radius": 0}),
    ("ass", slow_ass, {"growth": 2.0}),
    ("ass", slow_ass, {"growth": 1.5}),
    ("eoser", slow_eoser, {"damping": 0.5, "k": 1}),
    ("eoser", slow_eoser, {"damping": 0.0, "k": 2}),
    ("pc-sampler", slow_pc_sampler, {"decay": 0.25, "cap": 10.0, "k": 2}),
    ("pc-sampler", slow_pc_sampler, {"decay": 0.0, "cap": 0.5, "k": 1}),
    ("pc-sampler", slow_pc_sampler, {"decay": 0.5, "cap": 1.0, "frequencies": "counts.json", "k": 1}),
    ("prophet", slow_prophet, {"threshold": 1.0, "k": 1}),
    ("prophet", slow_prophet, {"threshold": 2.5, "k": 2, "block_length": 2}),
    ("sched", slow_sched, {"high": 1.0, "low": 0.25, "schedule": "linear", "k": 1}),
    ("sched", slow_sched, {"high": 2.0, "low": 0.0, "schedule": "cosine", "k": 2, "block_length": 3}),
    ("sched", slow_sched, {"high": 4.0, "low": 0.5, "schedule": "exponential", "rate": 4.0, "k": 1}),
    ("klass", slow_klass, {"threshold": 0.25, "divergence": 0.75, "history": 2, "k": 1}),
    ("klass", slow_klass, {"threshold": 0.0, "divergence": 1.0, "history": 1, "k": 2}),
    ("klass", slow_klass, {"threshold": 0.25, "divergence": 2.0, "history": 3, "k": 1}),
    ("credit", slow_credit, {"threshold": 0.6, "weight": 0.7, "gain": 0.2, "decay": 0.8}),
    ("credit", slow_credit, {"threshold": 0.7, "weight": 2.0, "gain": 0.5, "decay": 0.25}),
    ("less", slow_less, {"threshold": 0.25, "divergence": 0.1}),
    ("less", slow_less, {"threshold": 0.0, "divergence": 0.7}),
    ("dapd", slow_dapd, {"low": 0.0625, "high": 0.25, "threshold": 0.75}),
    ("dapd", slow_dapd, {"low": 0.125, "high": 0.125, "threshold": 0.25}),
    ("dawn", slow_dawn, dict(threshold=0.75, anchored=0.25, apart=0.5, edge=0.125, sink=0.25)),
    ("dawn", slow_dawn, dict(threshold=1.0, anchored=0.5, apart=0.0, edge=0.0625, sink=0.125)),
    ("clad", slow_clad, {"threshold": 0.5, "pair": 1.0}),
    ("clad", slow_clad, {"threshold": 0.25, "pair": 2.0}),
    ("multi-block", slow_multi_block, {"entropy": 0.25, "opening": 0.5, "block_length": 2}),
    ("multi-block", slow_multi_block, {"entropy": 0.0, "opening": 0.25, "block_length": 3}),
    ("adablock", slow_adablock, dict(threshold=0.75, sureness=0.25, delimiter=1, block_length=3, share=0.5)),
    ("adablock", slow_adablock, dict(threshold=0.5, sureness=0.5, delimiter=0, block_length=2, share=1.0)),
    ("slow-fast", slow_slow_fast, {"threshold": 0.75, "sureness": 0.25, "explore": 3}),
    ("slow-fast", slow_slow_fast, {"threshold": 1.0, "sureness": 0.75, "explore": 2}),
    ("slow-fast", slow_slow_fast, {"threshold": 1.0, "sureness": 1.0, "explore": 1}),
]  # fmt: skip
every_case = pytest.mark.parametrize(
    ("name", "slow", "parameters"), CASES, ids=lambda one: getattr(one, "__name__", str(one))
)


@pytest.fixture(scope="module", autouse=True)
def counts(tmp_path_factory):
    """``counts.json`` is where the tests run."""
    folder = tmp_path_factory.mktemp("counts")
    (folder / "counts.json").write_text(json.dumps(FREQUENCIES))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


# Episodes ---------------------------------------------------------------------------------------------------


def predictions(rng, rows, length):
    """Statistics with few distinct values, so that ties and equality at thresholds abound; all are exact."""
    shape = (rows, length)
    grain = rng.choice([2, 4, 16])

    def fractions():
        return (rng.integers(0, grain + 1, shape) / grain).astype(np.float32)

    shares = rng.multinomial(8, [0.5, 0.2, 0.2, 0.1], shape) / 8
    return {
        "confidence": fractions(),
        "written": fractions(),
        "entropy": fractions(),
        "divergence": 2 * fractions(),
        "persistence": rng.integers(0, 3, shape).astype(np.float32),
        "predicted": rng.integers(0, VOCABULARY, shape),
        "ends": rng.integers(0, 2, shape).astype(np.int8),
        "top_k": -np.sort(-shares, axis=-1)[..., :3].astype(np.float32),
        "attention": (rng.multinomial(32, np.full(length, 1 / length), shape) / 32).astype(np.float32),
    }


AT_REVEALED = {"confidence": 1, "entropy": 0, "divergence": 0, "persistence": 9, "ends": 0}


class Episodes:
    """Rows that decode and begin again when they are done, as an environment in blocks would show them."""

    def __init__(self, seed, rows, length, block_length):
        self.rng = np.random.default_rng(seed)
        self.block = np.arange(length) // block_length
        self.mask = np.ones((rows, length), dtype=bool)
        self.used, self.in_block, self.at_block = (np.zeros(rows, dtype=int) for _ in range(3))
        self.memories = [{} for _ in range(rows)]

    def observe(self):
        rows, length = self.mask.shape
        active = self.block == self.block[self.mask.argmax(axis=1)][:, None]
        seen = predictions(self.rng, rows, length)
        for key, value in AT_REVEALED.items():
            seen[key] = np.where(self.mask, seen[key], value).astype(seen[key].dtype)
        return {
            **seen,
            "mask": self.mask.astype(np.int8),
            "action_mask": (self.mask & active).astype(np.int8),
            "progress": (self.used[:, None] / length).astype(np.float32),
        }

    def rows(self, observation):
        for at in range(len(self.mask)):
            row = {key: values[at].tolist() for key, values in observation.items()}
            row["candidates"] = [i for i, bit in enumerate(row["action_mask"]) if bit]
            yield {**row, "step": int(self.used[at]), "block_step": int(self.in_block[at])}, self.memories[at]

    def apply(self, action):
        """The rows that begin anew."""
        self.mask &= action == 0
        self.used += 1
        over = ~self.mask.any(axis=1)
        self.mask[over] = True
        self.used[over] = 0
        for row in np.flatnonzero(over):
            self.memories[row].clear()
        at_block = self.block[self.mask.argmax(axis=1)]
        self.in_block = np.where(over | (at_block != self.at_block), 0, self.in_block + 1)
        self.at_block = at_block
        return np.flatnonzero(over)


sizes = st.tuples(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))


@every_case
@quick
@given(sizes)
def test_every_step_of_an_episode_is_that_of_the_brute_force(name, slow, parameters, size):
    episodes, rule = Episodes(*size), make_strategy(name, **parameters)
    assert rule.parameters == parameters
    for _ in range(12):
        observation = episodes.observe()
        before = {key: value.copy() for key, value in observation.items()}
        action = rule.act(observation)
        assert action.dtype == np.int8
        expected = np.zeros_like(action)
        for at, (row, memory) in enumerate(episodes.rows(observation)):
            expected[at, slow(row, memory, **parameters)] = 1
        np.testing.assert_array_equal(action, expected)
        for key, value in before.items():
            np.testing.assert_array_equal(observation[key], value)
        begun = episodes.apply(action)
        if hasattr(rule, "reset") and size[0] % 2:  # progress tells it as well
            rule.reset(begun)


@every_case
def test_a_row_alone_does_what_it_does_in_a_batch(name, slow, parameters):
    episodes = Episodes(7, 3, 8, 4)
    together = make_strategy(name, **parameters)
    alone = [make_strategy(name, **parameters) for _ in range(3)]
    for _ in range(10):
        observation = episodes.observe()
        action = together.act(observation)
        for row, rule in enumerate(alone):
            own = rule.act({key: value[row] for key, value in observation.items()})
            np.testing.assert_array_equal(own, action[row])
        episodes.apply(action)


@every_case
def test_rows_without_candidates_and_an_empty_batch(name, slow, parameters):
    rule = make_strategy(name, **parameters)
    observation = Episodes(3, 2, 6, 6).observe()
    observation["action_mask"][0] = observation["mask"][0] = 0
    action = rule.act(observation)
    assert not action[0].any()
    assert action[1].any()
    assert rule.act({key: value[:0] for key, value in observation.items()}).shape == (0, 6)


# Memory -----------------------------------------------------------------------------------------------------


class Counting(Remembering):
    """Reveals the first candidate; remembers what it is told."""

    name = "counting"

    def __init__(self):
        super().__init__()
        self.seen = []

    def fresh(self, rows, length):
        return {"sum": np.zeros(rows)}

    def choose(self, observation, candidates, kept):
        kept["sum"] = kept["sum"] + 1
        self.seen.append({key: values.tolist() for key, values in kept.items()})
        return candidates & (candidates.cumsum(axis=-1) == 1)


def act(rule, action_mask, progress):
    rule.act({"action_mask": np.array(action_mask), "progress": np.array(progress)[:, None]})
    return rule.seen[-1]


def test_memory_begins_anew_with_the_episode():
    rule = Counting()
    ones = [[1, 1], [1, 1]]
    assert act(rule, ones, [0.0, 0.5]) == {
        "steps": [0, 0], "block_steps": [0, 0], "block_size": [2, 2], "sum": [1, 1]
    }  # fmt: skip
    assert act(rule, ones, [0.5, 0.5])["steps"] == [1, 1]
    assert act(rule, ones, [0.5, 0.0])["sum"] == [3, 1]  # progress 0
    rule.reset(np.array([0]))
    assert act(rule, ones, [0.5, 0.5])["sum"] == [1, 2]  # reset
    assert act(rule, ones, [0.5, 0.5])["sum"] == [2, 3]
    assert act(rule, [[1, 1]], [0.5])["sum"] == [1]  # another batch
    rule.reset([5])  # a row that does not act
    assert act(rule, [[1, 1]], [0.5])["sum"] == [2]


def test_memory_knows_where_a_block_begins():
    rule = Counting()
    seen = [
        act(rule, [mask], [progress])
        for mask, progress in [
            ([1, 1, 1, 0, 0], 0.0),
            ([0, 1, 0, 0, 0], 0.2),
            ([0, 0, 0, 1, 1], 0.4),
            ([0, 0, 0, 1, 0], 0.6),
        ]
    ]
    assert [one["block_steps"] for one in seen] == [[0], [1], [0], [1]]
    assert [one["block_size"] for one in seen] == [[3], [3], [2], [2]]


# Details ----------------------------------------------------------------------------------------------------


def one_row(**values):
    length = len(next(iter(values.values())))
    return {"action_mask": np.ones(length, np.int8), **{key: np.array(v) for key, v in values.items()}}


def test_ascending_steps_are_powers_and_then_the_rest():
    rule, sizes = make_strategy("ass"), {8: [1, 2, 5], 9: [1, 2, 6], 48: [1, 2, 4, 8, 33], 1: [1], 3: [3]}
    for length, expected in sizes.items():
        mask, revealed = np.ones(length, np.int8), []
        while mask.any():
            progress = np.array([len(revealed) / length], np.float32)
            action = rule.act({"action_mask": mask, "confidence": np.ones(length), "progress": progress})
            revealed.append(int(action.sum()))
            mask = mask - action
        assert revealed == expected


def test_thresholds_are_those_of_float32():
    observation = one_row(confidence=np.array([0.95, 0.9, 0.75, 0.7], np.float32))
    assert make_strategy("local-leap", radius=1).act(observation).tolist() == [1, 1, 1, 0]


def test_the_damping_of_end_tokens_ends_with_the_last_step():
    observation = one_row(
        confidence=[1.0, 1.0, 0.9, 0.4, 0.42, 0.3], mask=[0, 0, 1, 1, 1, 1], ends=[0, 0, 1, 0, 0, 0]
    )
    observation["action_mask"] = np.array([0, 0, 1, 1, 1, 1])
    # the second of three steps: half of 0.9 is more than 0.42
    assert make_strategy("eoser", damping=0.0, k=2).act(observation).tolist() == [0, 0, 1, 0, 1, 0]


def test_of_very_small_probabilities_the_logarithm_is_finite():
    observation = one_row(confidence=[1.0], mask=[1], top_k=[[1.0, 0.0]])
    assert make_strategy("prophet", threshold=87).act(observation).tolist() == [1]


def test_commits_need_two_probabilities():
    observation = one_row(confidence=[1.0, 0.5], mask=[1, 1], top_k=[[1.0], [0.5]])
    with pytest.raises(ValueError, match=r"'prophet' reads the two largest .* top_k of at least 2, got 1"):
        make_strategy("prophet").act(observation)
    with pytest.raises(ValueError, match=r"\['top_k'\] has shape \(2,\); accepted is .* \(2,\) and 1 more"):
        make_strategy("prophet").act({**observation, "top_k": np.ones(2)})


def test_frequencies_are_read_with_suspicion(tmp_path):
    plain, told = make_strategy("pc-sampler"), make_strategy("pc-sampler", frequencies="counts.json")
    assert (plain.requires, told.requires) == ((), ("predicted",))
    assert plain.fingerprint == plain.label
    (tmp_path / "other.json").write_text("[1, 2]")
    other = make_strategy("pc-sampler", frequencies=tmp_path / "other.json")
    assert other.fingerprint.removeprefix(other.label) != told.fingerprint.removeprefix(told.label)
    for text in ("{}", "[-1]", '["a"]', "[NaN]", "3"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=r"bad\.json"):
            make_strategy("pc-sampler", frequencies=tmp_path / "bad.json")
    with pytest.raises(OSError, match=r"none\.json"):
        make_strategy("pc-sampler", frequencies=tmp_path / "none.json")


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("local-leap", {"relaxed": 0.95}, r"relaxed must be a finite number in \[0, 0.9\], got 0.95"),
        ("local-leap", {"radius": -1}, "radius must be an integer >= 0, got -1"),
        ("local-leap", {"threshold": 2}, r"threshold must be a finite number in \[0, 1\], got 2"),
        ("ass", {"growth": 1}, "growth must be a finite number > 1, got 1"),
        ("eoser", {"damping": 1.5}, r"damping must be a finite number in \[0, 1\], got 1.5"),
        ("eoser", {"k": 1, "steps_per_block": 2}, "give k or steps_per_block, not both"),
        ("pc-sampler", {"decay": -1}, "decay must be a finite number >= 0, got -1"),
        ("pc-sampler", {"cap": 0}, "cap must be a finite number > 0, got 0"),
        ("prophet", {"threshold": 0}, "threshold must be a finite number > 0, got 0"),
        ("prophet", {"block_length": 0}, "block_length must be an integer >= 1, got 0"),
        ("sched", {"low": 8}, r"low must be a finite number in \[0, 7.5\], got 8"),
        ("sched", {"schedule": "square"}, "one of linear, cosine, exponential, got 'square'"),
        ("sched", {"rate": 2}, "rate 2 is for the schedule exponential, not for cosine"),
        ("sched", {"schedule": "exponential", "rate": 0}, "rate must be a finite number > 0, got 0"),
        ("klass", {"divergence": 0}, "divergence must be a finite number > 0, got 0"),
        ("klass", {"history": 0}, "history must be an integer >= 1, got 0"),
        ("klass", {"k": 1.5}, "k must be an integer >= 1, got 1.5"),
        ("credit", {"decay": 2}, r"decay must be a finite number in \[0, 1\], got 2"),
        ("credit", {"weight": -1}, "weight must be a finite number >= 0, got -1"),
        ("less", {"divergence": -1}, "divergence must be a finite number >= 0, got -1"),
        ("dapd", {"low": 0.1}, "high must be a finite number >= 0.1, got 0.05"),
        ("dapd", {"threshold": 2}, r"threshold must be a finite number in \[0, 1\], got 2"),
        ("dawn", {"edge": -1}, "edge must be a finite number >= 0, got -1"),
        ("dawn", {"apart": 2}, r"apart must be a finite number in \[0, 1\], got 2"),
        ("clad", {"pair": -1}, "pair must be a finite number >= 0, got -1"),
        ("multi-block", {"opening": 0}, r"opening must be a finite number in \(0, 1\], got 0"),
        ("multi-block", {"block_length": 0}, "block_length must be an integer >= 1, got 0"),
        ("adablock", {"delimiter": -1}, "delimiter must be an integer >= 0, got -1"),
        ("adablock", {"share": 2}, r"share must be a finite number in \[0, 1\], got 2"),
        ("slow-fast", {"explore": 0}, "explore must be an integer >= 1, got 0"),
    ],
)
def test_parameters_are_checked_at_the_door(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        make_strategy(name, **parameters)


# On the embedded dLLMs --------------------------------------------------------------------------------------


def test_every_rule_says_where_it_comes_from():
    papers = {name: make_strategy(name).paper for name in strategy_names()}
    assert len(papers) >= 20
    assert {name for name, paper in papers.items() if "arXiv " not in paper} == set()


@pytest.mark.parametrize("name", strategy_names())
def test_every_rule_decodes_the_embedded_tasks(name):
    # prism asks a head that two of the dLLMs have
    for task in ("lists", "latin-square") if name == "prism" else ("arithmetic", "sudoku", "lists"):
        records = evaluate(name, 1, task=task).records
        assert (records.nfe >= 1).all()
        assert "[MASK]" not in "".join(records.completion)
