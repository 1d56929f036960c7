"""Every rule against a slow, literal, one-row-at-a-time reading of its definition."""

import json
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_gym import strategies
from dllm_gym.evaluation import as_agent, evaluate
from dllm_gym.strategies import InBlocks, Strategy, make_strategy, register_strategy, strategy_names

RULES = [
    ("random", {"k": 1}),
    ("random", {"k": 3}),
    ("confidence", {"k": 1}),
    ("confidence", {"k": 3}),
    ("margin", {"k": 2}),
    ("entropy", {"k": 1}),
    ("entropy", {"k": 2}),
    ("left-to-right", {"k": 1}),
    ("left-to-right", {"k": 4}),
    ("fast-dllm", {"threshold": 0.75}),
    ("fast-dllm", {"threshold": 0}),
    ("fast-dllm", {"threshold": 1}),
    ("fast-dllm-factor", {"factor": 1.0}),
    ("fast-dllm-factor", {"factor": 0.5}),
    ("fast-dllm-factor", {"factor": 3}),
    ("fast-dllm-factor-released", {"factor": 1.0}),
    ("fast-dllm-factor-released", {"factor": 0.5}),
    ("eb-sampler", {"gamma": 0.0}),
    ("eb-sampler", {"gamma": 0.25}),
    ("eb-sampler", {"gamma": 2}),
]
every_rule = pytest.mark.parametrize(("name", "parameters"), RULES, ids=lambda value: str(value))
quick = settings(max_examples=60, deadline=None)


# Brute force: lists of fractions for one row, positions found by scanning. --------------------------------


def in_order(cost, candidates):
    remaining, order = list(candidates), []
    while remaining:
        best = remaining[0]
        for i in remaining:
            if cost[i] < cost[best]:
                best = i
        order.append(best)
        remaining.remove(best)
    return order


def slow_top_k(row, candidates, k, key, sign):
    return in_order([sign * value for value in row[key]], candidates)[:k]


def slow_left_to_right(row, candidates, k):
    return candidates[:k]


def slow_fast_dllm(row, candidates, threshold):
    best = in_order([-c for c in row["confidence"]], candidates)[:1]
    return best + [i for i in candidates if row["confidence"][i] >= Fraction(threshold)]


def slow_factor(row, candidates, factor):
    order = in_order([-c for c in row["confidence"]], candidates)
    revealed = order[:1]
    for n in range(2, len(order) + 1):
        if not (n + 1) * (1 - row["confidence"][order[n - 1]]) < Fraction(factor):
            break
        revealed.append(order[n - 1])
    return revealed


def slow_factor_released(row, candidates, factor):
    order = in_order([-c for c in row["confidence"]], candidates)
    for n in range(2, len(order) + 1):
        if row["confidence"][order[n - 1]] < 1 - Fraction(factor) / (n + 1):
            return order if n == len(order) else order[: n - 1]
    return order


def slow_eb_sampler(row, candidates, gamma):
    order = in_order(row["entropy"], candidates)
    for size in range(len(order), 1, -1):
        entropies = [row["entropy"][i] for i in order[:size]]
        if sum(entropies) - max(entropies) <= Fraction(gamma):
            return order[:size]
    return order[:1]


SLOW = {
    "confidence": lambda *a, k: slow_top_k(*a, k, "confidence", -1),
    "margin": lambda *a, k: slow_top_k(*a, k, "margin", -1),
    "entropy": lambda *a, k: slow_top_k(*a, k, "entropy", 1),
    "left-to-right": slow_left_to_right,
    "fast-dllm": slow_fast_dllm,
    "fast-dllm-factor": slow_factor,
    "fast-dllm-factor-released": slow_factor_released,
    "eb-sampler": slow_eb_sampler,
}


def slow_act(name, parameters, observation):
    action = np.zeros_like(observation["action_mask"])
    for b, selectable in enumerate(observation["action_mask"]):
        keys = ("confidence", "margin", "entropy")
        row = {key: [Fraction(float(value)) for value in observation[key][b]] for key in keys}
        candidates = [i for i, bit in enumerate(selectable) if bit]
        action[b, SLOW[name](row, candidates, **parameters) if candidates else []] = 1
    return action


# Observations ---------------------------------------------------------------------------------------------


@st.composite
def observations(draw):
    """Few distinct values, so ties and equality at the thresholds abound; multiples of 1/16 are exact."""
    rows, length = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    grain = draw(st.sampled_from([2, 4, 16]))
    share = rng.choice([0.0, 0.1, 0.6, 1.0], size=(rows, 1))  # of masks: none, one or so, some, all
    mask = rng.random((rows, length)) < share
    block = (np.arange(length) < rng.integers(1, length + 1)) | (rng.random((rows, 1)) < 0.5)
    sixteenths = rng.integers(0, grain + 1, size=(3, rows, length)) / grain
    return {
        "confidence": np.where(mask, sixteenths[0], 1).astype(np.float32),
        "margin": np.where(mask, sixteenths[1], 1).astype(np.float32),
        "entropy": np.where(mask, sixteenths[2], 0).astype(np.float32),
        "mask": mask.astype(np.int8),
        "action_mask": (mask & block).astype(np.int8),
        "progress": rng.random((rows, 1), dtype=np.float32),
    }


def one_row(action_mask=None, **values):
    arrays = {key: np.array(value, dtype=np.float32) for key, value in values.items()}
    length = len(next(iter(arrays.values())))
    return {"action_mask": np.array([1] * length if action_mask is None else action_mask, np.int8), **arrays}


def pick(observation, rows):
    return {key: value[rows] for key, value in observation.items()}


def seeded(name, parameters, seeds):
    strategy = make_strategy(name, **parameters)
    if name == "random":
        strategy.seed(np.arange(len(seeds)), seeds)
    return strategy


# Properties -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "parameters"), [rule for rule in RULES if rule[0] in SLOW])
@quick
@given(observations())
def test_rule_equals_brute_force(name, parameters, observation):
    action = make_strategy(name, **parameters).act(observation)
    np.testing.assert_array_equal(action, slow_act(name, parameters, observation))


@every_rule
@quick
@given(observations())
def test_reveals_only_candidates_and_always_some(name, parameters, observation):
    before = {key: value.copy() for key, value in observation.items()}
    candidates = observation["action_mask"] == 1
    action = make_strategy(name, **parameters).act(observation)
    assert action.dtype == np.int8
    assert action.shape == candidates.shape
    assert set(np.unique(action)) <= {0, 1}
    assert not action[~candidates].any()
    np.testing.assert_array_equal(action.any(axis=1), candidates.any(axis=1))
    if "k" in parameters:
        np.testing.assert_array_equal(action.sum(axis=1), np.minimum(candidates.sum(axis=1), parameters["k"]))
    for key, value in before.items():
        np.testing.assert_array_equal(observation[key], value)


@every_rule
@quick
@given(observations(), st.randoms(use_true_random=False))
def test_row_does_not_depend_on_its_neighbours(name, parameters, observation, shuffler):
    rows = list(range(len(observation["mask"])))
    action = seeded(name, parameters, rows).act(observation)
    for row in rows:
        alone = seeded(name, parameters, [row]).act(pick(observation, [row]))
        np.testing.assert_array_equal(alone[0], action[row])
        unbatched = seeded(name, parameters, [row]).act(pick(observation, row))
        np.testing.assert_array_equal(unbatched, action[row])
    shuffler.shuffle(rows)
    np.testing.assert_array_equal(seeded(name, parameters, rows).act(pick(observation, rows)), action[rows])


@every_rule
def test_positions_outside_the_block_do_not_matter(name, parameters):
    observation = one_row(
        [0, 1, 1, 0, 1],
        confidence=[1, 0.4, 0.3, 0.9, 0.2],
        margin=[1, 0.1, 0.2, 0.9, 0.1],
        entropy=[0, 0.3, 0.2, 0.1, 0.9],
    )
    action = make_strategy(name, **parameters).act(observation)
    for key in ("confidence", "margin", "entropy"):
        observation[key][[0, 3]] = [0.5, 0]
    np.testing.assert_array_equal(make_strategy(name, **parameters).act(observation), action)


@every_rule
def test_empty_batch(name, parameters):
    empty = {key: np.zeros((0, 5), np.float32) for key in ("confidence", "margin", "entropy", "action_mask")}
    assert make_strategy(name, **parameters).act(empty).shape == (0, 5)


# The details of each rule ---------------------------------------------------------------------------------


def test_ties_go_to_the_lowest_index():
    flat = one_row([0, 1, 1, 1], confidence=[0.5] * 4, margin=[0.5] * 4, entropy=[0.5] * 4)
    for name in ("confidence", "margin", "entropy", "fast-dllm", "fast-dllm-factor", "eb-sampler"):
        assert make_strategy(name).act(flat).tolist() == [0, 1, 0, 0], name
    assert make_strategy("confidence", k=2).act(flat).tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("twentieths", range(21))
def test_fast_dllm_passes_at_the_threshold_as_written(twentieths):
    confidence = np.array([j / 20 for j in range(21)] + [1.0], dtype=np.float32)
    action = make_strategy("fast-dllm", threshold=twentieths / 20).act(one_row(confidence=confidence))
    expected = [int(j >= twentieths) for j in range(21)] + [1]
    assert action.tolist() == expected
    below = np.nextafter(confidence, np.float32(-1))
    action = make_strategy("fast-dllm", threshold=twentieths / 20).act(one_row(confidence=below))
    assert action[twentieths] == (twentieths == 20)  # there it is the most confident one


def test_fast_dllm_compares_in_float32_whatever_the_observation_holds():
    observation = {"action_mask": [1, 1, 1], "confidence": [0.95, float(np.float32(0.9)), 0.89]}
    assert make_strategy("fast-dllm", threshold=0.9).act(observation).tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("confidence", "factor", "expected"),
    [
        ([0.1, 0.2], 1.0, [0, 1]),  # rank 1 fails the inequality and is revealed all the same
        ([0.9, 0.9, 0.9, 0.5], 1.0, [1, 1, 1, 0]),  # fails only at the last rank
        ([0.9, 0.9, 0.9, 0.9], 1.0, [1, 1, 1, 1]),  # fails nowhere
        ([0.9, 0.75, 0.75], 1.0, [1, 1, 0]),  # 3 * 0.25 < 1, but 4 * 0.25 = 1
        ([0.6, 0.95, 0.9], 0.5, [0, 1, 1]),
    ],
)
def test_fast_dllm_factor(confidence, factor, expected):
    strategy = make_strategy("fast-dllm-factor", factor=factor)
    assert strategy.act(one_row(confidence=confidence)).tolist() == expected


@pytest.mark.parametrize(
    ("entropy", "gamma", "expected"),
    [
        ([2.0, 1.0], 0.1, [0, 1]),
        ([0.0, 5.0, 0.0], 0.0, [1, 1, 1]),  # the largest of the set is free
        ([0.1, 5.0, 6.0], 0.1, [1, 1, 0]),  # float32(0.1) is within 0.1
        ([0.5, 0.25, 0.25, 0.125], 0.375, [0, 1, 1, 1]),  # 0.125 + 0.25 is within, + 0.25 is not
        ([0.0, -1e-7, 0.0, 3.0], 0.0, [1, 1, 1, 1]),  # rounding can leave entropies a little below 0
    ],
)
def test_eb_sampler(entropy, gamma, expected):
    assert make_strategy("eb-sampler", gamma=gamma).act(one_row(entropy=entropy)).tolist() == expected


def test_costs_that_are_not_finite_still_leave_candidates_first():
    observation = one_row([0, 1, 1, 0], entropy=[0, np.inf, np.nan, 0])
    assert make_strategy("entropy").act(observation).tolist() == [0, 1, 0, 0]
    observation["action_mask"][1] = 0
    assert make_strategy("entropy").act(observation).tolist() == [0, 0, 1, 0]


# Randomness -----------------------------------------------------------------------------------------------


def masked(rows, length=12):
    return {"action_mask": np.ones((rows, length), np.int8)}


def test_random_is_reproducible():
    def actions(**parameters):
        strategy = make_strategy("random", k=3, **parameters)
        return np.stack([strategy.act(masked(4)) for _ in range(5)])

    np.testing.assert_array_equal(actions(), actions(seed=0))
    assert (actions() != actions(seed=1)).any()
    assert len(np.unique(actions().reshape(20, -1), axis=0)) > 10


def test_random_seed_restarts_a_row_and_leaves_the_others():
    first, second = make_strategy("random"), make_strategy("random")
    for strategy in (first, second):
        strategy.seed([0, 1, 5], [10, 11, 12])
        strategy.act(masked(6))
    second.seed(np.array([5]), np.array([10]))
    start = make_strategy("random")
    start.seed([0], [10])
    expected = first.act(masked(6))
    expected[5] = start.act(masked(1))[0]
    np.testing.assert_array_equal(second.act(masked(6)), expected)


def test_random_draws_only_for_rows_with_candidates():
    idle, busy = make_strategy("random", k=2), make_strategy("random", k=2)
    busy.act(masked(1))
    observation = masked(2)
    observation["action_mask"][0] = 0
    idle.act(observation)
    np.testing.assert_array_equal(idle.act(masked(2))[0], make_strategy("random", k=2).act(masked(1))[0])
    np.testing.assert_array_equal(idle.act(masked(2))[0], busy.act(masked(1))[0])


def test_random_keeps_its_choice_when_other_positions_drop_out():
    choice = make_strategy("random").act(masked(1))
    remaining = choice.copy()
    remaining[0, ::2] = 1
    np.testing.assert_array_equal(make_strategy("random").act({"action_mask": remaining}), choice)


def test_random_is_uniform():
    strategy = make_strategy("random", k=2)
    counts = sum(strategy.act(masked(200, length=5)).sum(axis=0) for _ in range(20))
    assert counts.sum() == 8000
    np.testing.assert_allclose(counts / 4000, 0.4, atol=0.04)  # about 5 standard deviations


@pytest.mark.parametrize(
    ("rows", "seeds", "message"),
    [
        ([0, 1], [3], "one seed per row, got 2 rows and 1 seeds"),
        ([-1], [3], "row must be an integer >= 0, got -1"),
        ([0], [-3], "seed must be an integer >= 0, got -3"),
        (np.array([True, False]), [1, 2], "row must be an integer"),
        ([0], [0.5], "seed must be an integer >= 0, got 0.5"),
    ],
)
def test_random_refuses_bad_seeds(rows, seeds, message):
    with pytest.raises(ValueError, match=message):
        make_strategy("random").seed(rows, seeds)


# Names, parameters, errors --------------------------------------------------------------------------------


def test_registry_names_requirements_and_labels():
    expected = {
        "random": ("random(k=1)", ()),
        "confidence": ("confidence(k=1)", ()),
        "margin": ("margin(k=1)", ("margin",)),
        "entropy": ("entropy(k=1)", ("entropy",)),
        "left-to-right": ("left-to-right(k=1)", ()),
        "fast-dllm": ("fast-dllm(threshold=0.9)", ()),
        "fast-dllm-factor": ("fast-dllm-factor(factor=1.0)", ()),
        "fast-dllm-factor-released": ("fast-dllm-factor-released(factor=1.0)", ()),
        "eb-sampler": ("eb-sampler(gamma=0.1)", ("entropy",)),
    }
    assert set(expected) <= set(strategy_names())
    for name, (label, requires) in expected.items():
        strategy = make_strategy(name)
        assert (strategy.name, strategy.label, repr(strategy), strategy.requires) == (
            name,
            label,
            label,
            requires,
        )


@every_rule
def test_parameters_survive_json(name, parameters):
    strategy = make_strategy(name, **parameters)
    assert strategy.parameters == parameters
    again = make_strategy(name, **json.loads(json.dumps(strategy.parameters)))
    assert again.label == strategy.label


def test_numpy_scalars_become_plain_numbers():
    assert make_strategy("confidence", k=np.int64(2)).label == "confidence(k=2)"
    assert make_strategy("fast-dllm", threshold=np.float32(0.5)).label == "fast-dllm(threshold=0.5)"
    assert make_strategy("eb-sampler", gamma=np.int8(1)).label == "eb-sampler(gamma=1.0)"
    assert make_strategy("eb-sampler", gamma=np.float16(1)).label == "eb-sampler(gamma=1.0)"


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        *(
            (name, {"k": 0}, "k must be an integer >= 1, got 0")
            for name in ("random", "confidence", "margin")
        ),
        ("entropy", {"k": 1.5}, "k must be an integer >= 1, got 1.5"),
        ("left-to-right", {"k": True}, "k must be an integer >= 1, got True"),
        ("confidence", {"k": "2"}, "k must be an integer >= 1, got '2'"),
        ("random", {"seed": -1}, "seed must be an integer >= 0, got -1"),
        ("fast-dllm", {"threshold": 1.1}, r"threshold must be a finite number in \[0, 1\], got 1.1"),
        ("fast-dllm", {"threshold": -0.1}, "threshold must be .* got -0.1"),
        ("fast-dllm", {"threshold": float("nan")}, "threshold must be .* got nan"),
        ("fast-dllm", {"threshold": True}, "threshold must be .* got True"),
        ("fast-dllm", {"threshold": np.True_}, "threshold must be .* got .*True"),
        ("fast-dllm", {"threshold": "0.9"}, "threshold must be .* got '0.9'"),
        ("fast-dllm", {"threshold": None}, "threshold must be .* got None"),
        ("fast-dllm-factor", {"factor": 0}, "factor must be a finite number > 0, got 0"),
        ("fast-dllm-factor", {"factor": float("inf")}, "factor must be a finite number > 0, got inf"),
        ("eb-sampler", {"gamma": -0.5}, "gamma must be a finite number >= 0, got -0.5"),
        ("eb-sampler", {"gamma": float("nan")}, "gamma must be .* got nan"),
        ("eb-sampler", {"gamma": 1e300}, r"gamma must be .* got 1e\+300"),
    ],
)
def test_refuses_parameters_out_of_range(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        make_strategy(name, **parameters)


@pytest.mark.parametrize("name", strategy_names())
def test_with_other_options_it_is_the_strategy_made_so(name):
    plain = make_strategy(name)
    assert plain.with_options().label == plain.label
    parameter, value = next(iter(plain.parameters.items()))
    other = plain.with_options(**{parameter: value * 0.9 if isinstance(value, float) else value + 3})
    assert other.label == make_strategy(name, **other.parameters).label != plain.label
    with pytest.raises(ValueError, match=f"strategy '{name}': .*'wrong'.* it accepts"):
        plain.with_options(wrong=1)


def test_make_strategy_names_what_it_knows():
    nearest = r"unknown strategy 'fastdllm' \(did you mean 'fast-dllm'\?\); known strategies: .*fast-dllm, "
    with pytest.raises(ValueError, match=nearest):
        make_strategy("fastdllm")
    with pytest.raises(ValueError, match=r"'fast-dllm': .*'tau'; it accepts threshold$"):
        make_strategy("fast-dllm", tau=0.9)


def test_missing_key_says_how_to_get_it():
    with pytest.raises(
        ValueError,
        match=r"strategy 'entropy' reads observation\['entropy'\]; "
        r"make the environment with observe=\('entropy',\)",
    ):
        make_strategy("entropy").act(one_row(confidence=[0.5]))
    with pytest.raises(ValueError, match=r"reads observation\['margin'\].*observe=\('margin',\)"):
        make_strategy("margin").act(one_row(confidence=[0.5]))
    with pytest.raises(ValueError, match=r"reads observation\['confidence'\]; .* only \['action_mask'\]"):
        make_strategy("fast-dllm").act(masked(1))
    with pytest.raises(ValueError, match=r"reads observation\['action_mask'\]"):
        make_strategy("random").act({"confidence": np.ones(3)})


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\); accepted is that of action_mask, \(2, 3\)"):
        make_strategy("confidence").act({"action_mask": np.ones((2, 3)), "confidence": np.ones(3)})
    with pytest.raises(ValueError, match=r"\['action_mask'\] has shape \(1, 2, 3\); accepted are \(L,\) and"):
        make_strategy("random").act({"action_mask": np.ones((1, 2, 3))})


class Everything(Strategy):
    """A user's rule without parameters that is careless about what may be revealed."""

    name = "everything"

    def select(self, observation, candidates):
        return np.ones_like(candidates)


def test_own_strategy(monkeypatch):
    monkeypatch.setattr(strategies, "_STRATEGIES", dict(strategies._STRATEGIES))
    register_strategy("everything", Everything)
    assert "everything" in strategy_names()
    strategy = make_strategy("everything")
    assert strategy.label == "everything()"
    assert strategy.act({"action_mask": [0, 1, 1, 0]}).tolist() == [0, 1, 1, 0]
    register_strategy("needy", lambda path: Everything())
    with pytest.raises(ValueError, match=r"'needy': missing a required argument: 'path'; it accepts path"):
        make_strategy("needy")


# LLaDA's schedule ------------------------------------------------------------------------------------------


def schedule(masks, steps):
    """LLaDA 2502.09992, ``get_num_transfer_tokens``, for as many steps as there are masks or fewer."""
    return [masks // steps + (step < masks % steps) for step in range(steps)]


@quick
@given(
    block_length=st.integers(1, 9),
    num_blocks=st.integers(1, 4),
    steps=st.integers(1, 9),
    name=st.sampled_from(["confidence", "margin", "entropy", "left-to-right", "random"]),
)
def test_every_block_follows_lladas_schedule(block_length, num_blocks, steps, name):
    steps = min(steps, block_length)
    agent = make_strategy(name, steps_per_block=steps)
    length = block_length * num_blocks
    rng = np.random.default_rng(length)
    mask, revealed = np.ones(length, dtype=np.int8), []
    for used in range(num_blocks * steps):
        active = mask & (np.arange(length) // block_length == mask.argmax() // block_length)
        values = {key: rng.random(length, dtype=np.float32) for key in ("confidence", "margin", "entropy")}
        progress = np.array([used / length], dtype=np.float32)
        action = agent.act({"mask": mask, "action_mask": active, "progress": progress, **values})
        revealed.append(int(action.sum()))
        mask = mask - action
    assert revealed == schedule(block_length, steps) * num_blocks
    assert not mask.any()


def test_rows_are_at_their_own_place_in_the_schedule():
    agent = make_strategy("left-to-right", steps_per_block=4)
    action_mask = np.array([[1] * 10, [0] * 6 + [1] * 4, [0] * 10], dtype=np.int8)
    progress = np.array([[0.0], [0.2], [0.4]], dtype=np.float32)  # 0, 2 and 4 steps of 10
    action = agent.act({"action_mask": action_mask, "progress": progress})
    assert action.sum(axis=1).tolist() == [3, 2, 0]


def test_a_short_last_block_takes_no_more_steps_than_it_has_positions():
    records = evaluate("confidence:steps_per_block=7", 3, task="arithmetic", block_length=20).records
    assert records.nfe.tolist() == [7 + 7 + 7] * 3
    records = evaluate("confidence:steps_per_block=10", 3, task="arithmetic", block_length=20).records
    assert records.nfe.tolist() == [10 + 10 + 8] * 3


def test_a_schedule_has_its_limits():
    with pytest.raises(ValueError, match="give k or steps_per_block, not both; got 2 and 3"):
        make_strategy("confidence", k=2, steps_per_block=3)
    with pytest.raises(ValueError, match="steps_per_block must be an integer >= 1, got 0"):
        make_strategy("random", steps_per_block=0)
    with pytest.raises(ValueError, match="steps_per_block 9 exceeds the 8 positions of a block"):
        evaluate("confidence:steps_per_block=9", 1, task="arithmetic", block_length=8)
    agent = make_strategy("margin", steps_per_block=3)
    assert agent.label == "margin(steps_per_block=3)"
    with pytest.raises(ValueError, match=r"reads observation\['progress'\]"):
        agent.act(masked(1))


def test_dreams_schedule_has_its_limits():
    with pytest.raises(ValueError, match="give k or dream_steps, not both; got 2 and 3"):
        make_strategy("entropy", k=2, dream_steps=3)
    with pytest.raises(ValueError, match="give steps_per_block or dream_steps, not both"):
        make_strategy("random", steps_per_block=2, dream_steps=3)
    with pytest.raises(ValueError, match="dream_steps must be an integer >= 1, got 0"):
        make_strategy("entropy", dream_steps=0)
    with pytest.raises(ValueError, match=r"eps 0.1 is for dream_steps, which is not given"):
        make_strategy("entropy", eps=0.1)
    for eps in (0, -1e-3, 1.5, float("nan")):
        with pytest.raises(ValueError, match="eps must be a finite number"):
            make_strategy("entropy", dream_steps=3, eps=eps)
    with pytest.raises(
        ValueError, match="schedule of a whole completion, 48 positions; a block of 8 takes steps"
    ):
        evaluate("entropy:dream_steps=9", 1, task="arithmetic", block_length=8)
    assert make_strategy("entropy", dream_steps=9).label == "entropy(dream_steps=9, eps=0.001)"


def test_rows_are_at_their_own_place_in_dreams_schedule():
    agent = make_strategy("left-to-right", dream_steps=4)  # 10 positions are 2, 2, 2, 4
    masked = np.array([10, 8, 6, 4, 0, 5])
    action_mask = (np.arange(10) < masked[:, None]).astype(np.int8)
    progress = np.array([[0], [1], [2], [3], [4], [5]], dtype=np.float32) / 10
    action = agent.act({"action_mask": action_mask, "progress": progress})
    assert action.sum(axis=1).tolist() == [2, 2, 2, 4, 0, 1]  # the last one is at no place of it: on to 4


# Block by block --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "fast-dllm:threshold=0.8",
        "confidence:k=3",
        "confidence:steps_per_block=5",
        "random:k=4",
        "eb-sampler:gamma=0.3",
        "left-to-right:k=5",
    ],
)
def test_in_blocks_is_the_rule_in_an_environment_with_blocks(text):
    confined = InBlocks(as_agent(text), 16)
    one = evaluate(confined, 5, task="arithmetic").records
    other = evaluate(text, 5, task="arithmetic", block_length=16).records
    assert one.completion == other.completion
    assert np.array_equal(one.nfe, other.nfe)


def test_in_blocks_of_an_environment_with_blocks():
    """The smaller blocks count."""
    confined = InBlocks(make_strategy("confidence", k=4), 8)
    one = evaluate(confined, 3, task="arithmetic", block_length=24).records
    other = evaluate("confidence:k=4", 3, task="arithmetic", block_length=8).records
    assert one.completion == other.completion


def test_in_blocks_draws_do_not_depend_on_the_batch_size():
    results = [
        evaluate(InBlocks(make_strategy("random", k=2), 16), 4, task="arithmetic", batch_size=size).records
        for size in (4, 3)
    ]
    assert results[0].completion == results[1].completion


@quick
@given(
    block_length=st.integers(1, 9), rows=st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1)
)
def test_in_blocks_acts_in_the_first_block_with_candidates(block_length, rows):
    candidates = np.array(rows, dtype=np.int8)
    agent = InBlocks(make_strategy("left-to-right", k=7), block_length)  # takes all it may
    actions = agent.act({"action_mask": candidates})
    assert actions.dtype == np.int8
    for row, action in zip(rows, actions.tolist(), strict=True):
        free = [k for k in range(7) if row[k]]
        block = [k for k in free if k // block_length == free[0] // block_length]
        assert [k for k in range(7) if action[k]] == block
    assert np.array_equal(agent.act({"action_mask": candidates[0]}), actions[0])


def test_in_blocks_names_itself():
    agent = InBlocks(make_strategy("margin", k=2), 8)
    assert agent.label == "margin(k=2) in blocks of 8"
    assert agent.parameters == {"k": 2, "in_blocks_of": 8}
    assert agent.requires == ("margin",)
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"block_length must be an integer >= 1, got {wrong}"):
            InBlocks(make_strategy("margin", k=2), wrong)


def test_import_is_light():
    code = "import sys, dllm_gym.strategies; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
