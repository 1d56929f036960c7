"""Tokens that go back, or are replaced at once, against a reading of the rules in plain lists."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_backend import EOS, MASK, ScriptedBackend, ToyBackend, ToyTask

import dllm_gym
from dllm_gym.backends.base import Prediction
from dllm_gym.cli.options import Place
from dllm_gym.envs.moves import commit_drift
from dllm_gym.envs.rendering import render_ansi, render_rgb
from dllm_gym.envs.unmask import UnmaskEnv
from dllm_gym.evaluation import Recording, compare, evaluate, profile
from dllm_gym.generation import generate
from dllm_gym.looking.film import film
from dllm_gym.looking.game import Turn
from dllm_gym.looking.report import _player_run
from dllm_gym.strategies import InBlocks, make_strategy

LENGTH = 6


def toy(**kwargs):
    return UnmaskEnv(
        **{
            **{"backend": ToyBackend(), "task": ToyTask(), "actions": "set-state"},
            **{"observe": ("tokens", "remasks"), **kwargs},
        }
    )


def bits(*positions, length=LENGTH):
    return np.isin(np.arange(length), positions).astype(np.int8)


class SlowEpisode:
    """One episode by the rules, a position at a time."""

    def __init__(self, replace, block_length, limit, max_steps, confirm, stop_at_eos, on_empty):
        self.replace = replace
        self.block_length, self.limit, self.max_steps = block_length, limit, max_steps
        self.confirm, self.stop_at_eos, self.on_empty = confirm, stop_at_eos, on_empty
        self.tokens, self.back = [MASK] * LENGTH, [0] * LENGTH
        self.block = self.steps = self.empty = self.ignored = 0
        self.over = False

    def in_block(self):
        first = self.block * self.block_length
        return range(first, min(first + self.block_length, LENGTH))

    def allowed(self):
        if self.block * self.block_length >= LENGTH:
            return []
        return [p for p in self.in_block() if self.tokens[p] == MASK or self.back[p] < self.limit]

    def act(self, action, predicted, confidence):
        allowed = self.allowed()
        self.ignored += sum(action[p] for p in range(LENGTH) if p not in allowed)
        reveal = [p for p in allowed if self.tokens[p] == MASK and action[p]]
        back = [p for p in allowed if self.tokens[p] != MASK and not action[p]]
        if self.replace:
            back = [p for p in back if self.tokens[p] != predicted[p]]
        if not reveal and not back:
            self.empty += 1
            masked = [p for p in allowed if self.tokens[p] == MASK]
            if self.on_empty == "best" and masked:
                reveal = [max(masked, key=lambda p: (confidence[p], -p))]
        for p in reveal:
            self.tokens[p] = predicted[p]
        for p in back:
            self.tokens[p] = predicted[p] if self.replace else MASK
            self.back[p] += 1
        self.steps += 1
        doubtful = reveal + back if self.confirm else []  # what no further step has let stand

        def stands(positions):
            return all(self.tokens[p] != MASK and p not in doubtful for p in positions)

        if stands(self.in_block()):
            self.block += 1
        ends = [p for p in range(LENGTH) if self.tokens[p] == EOS] if self.stop_at_eos else []
        self.over = (
            self.block * self.block_length >= LENGTH
            or self.steps >= self.max_steps
            or any(stands(range(p + 1)) for p in ends)
        )


games = st.fixed_dictionaries(
    {
        "actions": st.sampled_from(["set-state", "edit"]),
        "block_length": st.sampled_from([1, 2, 4, 6]),
        "max_remasks": st.sampled_from([None, 1, 2]),
        "forbid_remask": st.booleans(),
        "max_steps": st.sampled_from([None, 3, 15]),
        "finish": st.sampled_from(["full", "confirm"]),
        "stop_at_eos": st.booleans(),
        "on_empty": st.sampled_from(["best", "noop"]),
    }
)


@settings(max_examples=150)
@given(game=games, seed=st.integers(0, 2**32))
def test_equals_the_rules_in_plain_lists(game, seed):
    env = toy(**game)
    rng = np.random.default_rng(seed)
    observation, _ = env.reset(options={"problem": int(rng.integers(50))})
    limit = 0 if game["forbid_remask"] else game["max_remasks"] or 99
    slow = SlowEpisode(
        game["actions"] == "edit", game["block_length"], limit, game["max_steps"] or LENGTH,
        game["finish"] == "confirm", game["stop_at_eos"], game["on_empty"],
    )  # fmt: skip
    keep = rng.random()  # how much of what stands is let stand
    while not slow.over:
        assert observation["tokens"].tolist() == slow.tokens
        assert np.flatnonzero(observation["action_mask"]).tolist() == slow.allowed()
        assert observation["mask"].tolist() == [t == MASK for t in slow.tokens]
        assert observation["remasks"].tolist() == slow.back
        assert observation["progress"] == np.float32(slow.steps / LENGTH)
        assert observation in env.observation_space
        wanted = rng.random(LENGTH) < np.where(observation["mask"], rng.choice([0, 0.2, 0.6]), keep)
        predicted, confidence = env.engine.predicted_tokens[0].tolist(), env.engine.confidence[0].tolist()
        slow.act(wanted.tolist(), predicted, confidence)
        observation, _, over, truncated, info = env.step(wanted)
        assert (over, truncated) == (slow.over, False)
    assert observation["tokens"].tolist() == slow.tokens
    told = info["nfe"], info["remasks"], info["empty_actions"], info["ignored_actions"]
    assert told == (slow.steps, sum(slow.back), slow.empty, slow.ignored)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    actions=st.sampled_from(["set-state", "edit"]),
    block_length=st.sampled_from([2, 6]),
    temperature=st.sampled_from([0.0, 0.7]),
)
def test_who_takes_nothing_back_plays_the_game_of_revealing(seed, actions, block_length, temperature):
    common = {"block_length": block_length, "temperature": temperature, "observe": ("tokens",)}
    one, other = toy(actions="reveal", **common), toy(actions=actions, **common)
    rng = np.random.default_rng(seed)
    seen, also = one.reset(seed=seed)[0], other.reset(seed=seed)[0]
    over = False
    while not over:
        action = (rng.random(LENGTH) < 0.3).astype(np.int8)
        seen, reward, over, *_, info = one.step(action)
        also, same, too, *_, told = other.step(action | (also["mask"] == 0))
        assert (reward, over) == (same, too)
        for key in ("mask", "tokens", "progress"):
            np.testing.assert_array_equal(seen[key], also[key])
    assert (info["nfe"], info["completion"]) == (told["nfe"], told["completion"])
    assert "remasks" not in info
    assert told["remasks"] == 0


def test_a_token_taken_back_is_predicted_anew():
    env = toy(finish="confirm")
    env.reset(seed=0)
    backend = env.engine.backend
    first, *_ = env.step(bits(0, 1, 2))
    assert (first["tokens"][:3] != MASK).all()
    second, *_ = env.step(bits(0, 2, 3))
    assert second["tokens"][1] == MASK
    assert second["mask"].tolist() == [0, 1, 0, 0, 1, 1]
    assert second["remasks"].tolist() == [0, 1, 0, 0, 0, 0]
    assert backend.calls[-1][0, -LENGTH:].tolist() == second["tokens"].tolist()


def test_a_token_is_replaced_where_the_dllm_would_write_another():
    env = toy(actions="edit", observe=("tokens", "predicted", "predicted_confidence", "remasks"))
    env.reset(seed=0)
    before, *_ = env.step(bits(0, 1, 2, 3))
    other = before["predicted"] != before["tokens"]
    assert other[:4].any()
    raw = env.engine.confidence[0]
    np.testing.assert_array_equal(before["predicted_confidence"], raw)  # of tokens that stand, too
    assert (before["confidence"][:4] == 1).all()
    after, *_ = env.step(bits())
    np.testing.assert_array_equal(after["tokens"][:4], before["predicted"][:4])
    assert (after["tokens"][4:] == MASK).all()
    np.testing.assert_array_equal(after["remasks"][:4], other[:4])
    still, *_ = env.step(bits(0, 1, 2, 3, 4))
    np.testing.assert_array_equal(still["tokens"][:4], after["tokens"][:4])


def test_to_replace_a_token_by_itself_is_to_do_nothing():
    env = toy(actions="edit", backend=Settled([1, 2, 3, 4, 5, 6]), finish="confirm", on_empty="noop")
    env.reset(seed=0)
    env.step(np.ones(LENGTH))
    _, _, over, _, info = env.step(np.zeros(LENGTH))
    assert over
    assert (info["nfe"], info["remasks"], info["empty_actions"]) == (2, 0, 1)


class Settled(ScriptedBackend):
    """Says the same whatever it is asked, and is asked for what a token that stands is worth."""

    def predict(self, tokens, *args, statistics=(), **kwargs):
        seen = super().predict(tokens, *args, **kwargs)
        return Prediction(seen.tokens, seen.confidence, {name: seen.confidence for name in statistics})


def test_the_confirming_forward_counts():
    env = toy(finish="confirm")
    env.reset(seed=0)
    calls = len(env.engine.backend.calls)
    _, _, over, *_ = env.step(np.ones(LENGTH))
    assert not over
    assert len(env.engine.backend.calls) == calls + 1  # it looks at what it wrote
    _, _, over, _, info = env.step(np.ones(LENGTH))
    assert over
    assert info["nfe"] == 2 == len(env.engine.backend.calls)


def test_each_row_confirms_for_itself():
    env = gym.make_vec(
        "DLLMUnmask-v0", num_envs=2, backend=ToyBackend(), task=ToyTask(), actions="set-state",
        finish="confirm", autoreset_mode="Disabled",
    )  # fmt: skip
    env.reset(seed=0)
    env.step(np.ones((2, LENGTH)))
    _, _, over, _, infos = env.step(np.stack([np.ones(LENGTH), bits(0, 1)]))
    assert over.tolist() == [True, False]
    assert infos["nfe"].tolist() == [2, 0]


def test_a_full_block_is_final():
    env = toy(block_length=2)
    env.reset(seed=0)
    observation, *_ = env.step(bits(0, 1))
    assert observation["action_mask"].tolist() == [0, 0, 1, 1, 0, 0]
    observation, *_ = env.step(bits(2))
    assert observation["mask"].tolist() == [0, 0, 0, 1, 1, 1]
    observation, *_ = env.step(bits(3))
    assert observation["mask"].tolist() == [0, 0, 1, 0, 1, 1]
    assert observation["remasks"].tolist() == [0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(("steps", "reward"), [(1, 1.0), (6, 1 / 6), (9, 1 / 6)])
def test_a_step_costs_the_same_whatever_the_budget(steps, reward):
    class Right(ToyTask):
        def score(self, completion, problem):
            return 1.0

    env = toy(task=Right(), max_steps=20, on_empty="noop")
    env.reset(seed=0)
    for _ in range(steps - 1):
        env.step(np.zeros(LENGTH))
    *_, paid, over, _, _ = env.step(np.ones(LENGTH))
    assert over
    assert paid == pytest.approx(reward)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"actions": "remask"}, "unknown actions 'remask'; choose one of reveal, set-state, edit"),
        ({"actions": "reveal", "max_remasks": 2}, "are for actions='set-state' and 'edit'; got 2 and 'full'"),
        ({"actions": "reveal", "finish": "confirm"}, "got None and 'confirm' with actions='reveal'"),
        ({"finish": "never"}, "unknown finish 'never'; choose one of full, confirm"),
        ({"max_remasks": 0}, "max_remasks must be a whole number of at least 1, got 0"),
        ({"max_steps": 0}, "max_steps must be a whole number of at least 1, got 0"),
    ],
)
def test_what_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        toy(**kwargs)


def test_what_determines_an_episode_is_told():
    told = toy(max_remasks=2, finish="confirm", max_steps=9).engine.description()
    rules = {"actions": "set-state", "max_steps": 9, "max_remasks": 2, "forbid_remask": False}
    assert {**rules, "finish": "confirm"}.items() <= told.items()
    assert not rules.keys() & toy(actions="reveal").engine.description().keys()


# Commit drift ---------------------------------------------------------------------------------------------


class Fickle(ScriptedBackend):
    """Sure of everything while anything is masked; then it doubts some of what it wrote."""

    def __init__(self, doubted):
        super().__init__([1] * LENGTH, [0.9] * LENGTH)
        self.doubted = torch.tensor(doubted, dtype=torch.float32)

    def predict(self, tokens, *args, statistics=(), **kwargs):
        seen = super().predict(tokens, *args, **kwargs)
        full = (tokens[:, -LENGTH:] != MASK).all(1)[:, None, None]
        now = torch.where(full, self.doubted[None, :, None], 0.9)
        other = {
            "written": now[..., 0].expand(seen.tokens.shape),
            "best": seen.tokens,
        }
        return Prediction(seen.tokens, seen.confidence, {name: other[name] for name in statistics})


def test_commit_drift_is_what_the_dllm_doubts_in_the_end():
    env = toy(backend=Fickle([0.9, 0.1, 0.3, 0.1, 0.9, 0.0]), actions="reveal", commit_drift=True)
    env.reset(seed=0)
    *_, over, _, info = env.step(np.ones(LENGTH))
    assert over
    assert info["commit_drift"] == pytest.approx(3 / 6)
    assert info["nfe"] == 1  # looking is no step
    result = evaluate("random:k=2", 4, backend=Fickle([0.1] * LENGTH), task=ToyTask(), commit_drift=True)
    assert result.records.metrics["commit_drift"].tolist() == [1.0] * 4
    assert result.to_json()["commit_drift"] == 1.0


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32), st.booleans()), min_size=1))
def test_commit_drift_by_hand(cells):
    when, now, revealed = (np.array([column]) for column in zip(*cells, strict=True))
    drifted = [w > 0.5 and n < 0.2 for w, n, there in cells if there]
    expected = sum(drifted) / len(drifted) if drifted else 0.0
    assert commit_drift(when.astype(np.float32), now.astype(np.float32), revealed) == pytest.approx(expected)


# Whoever decodes --------------------------------------------------------------------------------------------


class Wavering:
    """Reveals everything, takes two positions back once, and reveals them again."""

    name = label = "wavering"

    def __init__(self):
        self.parameters = {}
        self.plays = {"actions": "set-state", "finish": "confirm", "max_steps": 20}

    def act(self, observation):
        full = (observation["mask"] == 0).all(axis=1, keepdims=True)
        fresh = observation["progress"] * observation["mask"].shape[1] < 2
        return np.where(full & fresh & (np.arange(observation["mask"].shape[1]) < 2), 0, 1).astype(np.int8)


def where(**kwargs):
    return {"backend": ToyBackend(), "task": ToyTask("test"), **kwargs}


def test_evaluations_play_by_the_agents_rules():
    result = evaluate(Wavering(), 5, record=True, **where())
    assert result.environment["actions"] == "set-state"
    assert result.records.nfe.tolist() == [4.0] * 5  # all, back, again, confirmed
    assert result.records.metrics["remasks"].tolist() == [2.0] * 5
    recording = result.recording
    assert recording.reveal_step.tolist() == [[3, 3, 1, 1, 1, 1]] * 5
    assert recording.remasks.tolist() == [[1, 1, 0, 0, 0, 0]] * 5
    told = profile(recording)
    assert told.remasks_mean == 2.0
    assert told.rewritten == pytest.approx(recording.rewritten[:, :2].mean())
    without = evaluate(Wavering(), 5, forbid_remask=True, **where())
    assert without.records.nfe.tolist() == [2.0] * 5
    assert without.records.metrics["remasks"].tolist() == [0.0] * 5


class Editing(Wavering):
    """Replaces where that one takes back."""

    def __init__(self):
        super().__init__()
        self.plays = {**self.plays, "actions": "edit"}


def test_what_was_replaced_is_recorded_with_its_last_step():
    result = evaluate(Editing(), 8, record=True, **where())
    recording = result.recording
    assert recording.environment["actions"] == "edit"
    replaced = recording.remasks == 1
    assert replaced.any()
    assert not replaced[:, 2:].any()
    np.testing.assert_array_equal(recording.reveal_step, np.where(replaced, 2, 1))
    np.testing.assert_array_equal(recording.rewritten, replaced)  # by another token, always
    assert result.records.nfe.tolist() == [3.0 if any(row) else 2.0 for row in replaced]
    without = evaluate(Editing(), 8, forbid_remask=True, **where())
    assert without.records.metrics["remasks"].tolist() == [0.0] * 8


def test_films_show_what_was_replaced():
    frames = [one for (one,) in film([Editing()], 1, **where()).frames]
    at = np.flatnonzero(frames[2].just_remasked).tolist()
    assert at
    assert not frames[2].masked.any()
    assert [frames[2].tokens[p] != frames[1].tokens[p] for p in at] == [True] * len(at)
    assert "\x1b[91m" in render_ansi(frames[2])
    plain = type(frames[2])(**{**frames[2].__dict__, "just_remasked": None})
    assert (render_rgb(frames[2]) != render_rgb(plain)).any()
    run = _player_run(frames, 1.0, "red")
    assert [(where, since, until) for where, since, until, _ in run["earlier"]] == [(p, 1, 2) for p in at]
    assert [run["revealed"][p] for p in at] == [2] * len(at)


def test_recordings_of_tokens_that_went_back_are_kept(tmp_path):
    recording = evaluate(Wavering(), 5, record=True, **where()).recording
    again = Recording.load(recording.save(tmp_path / "episodes.npz"))
    np.testing.assert_array_equal(again.remasks, recording.remasks)
    np.testing.assert_array_equal(again.rewritten, recording.rewritten)
    plain = evaluate("random:k=2", 5, record=True, **where()).recording
    assert plain.remasks is None
    assert np.isnan(profile(plain).remasks_mean)


def test_evaluations_that_were_interrupted_know_of_remasks(tmp_path):
    lines = tmp_path / "episodes.jsonl"
    first = evaluate(Wavering(), 2, output=lines, **where())
    more = evaluate(Wavering(), 4, output=lines, **where())
    assert more.records.metrics["remasks"].tolist() == [2.0] * 4
    assert first.records.metrics["remasks"].tolist() == [2.0] * 2


def test_in_a_comparison_everybody_plays_by_their_own_rules():
    found = compare([Wavering(), "random:k=2"], 3, strategies="none", **where())
    assert [result.environment.get("actions") for result in found.results] == ["set-state", None]
    assert found.results[1].nfe_mean == 3.0


@pytest.mark.parametrize("agent", ["random:k=2", "confidence:k=1", "fast-dllm:threshold=0.5", "oracle"])
def test_who_only_reveals_decodes_the_same_where_tokens_could_go_back(agent):
    plain = evaluate(agent, 6, **where(block_length=2))
    free = evaluate(agent, 6, **where(block_length=2, actions="set-state"))
    assert free.records.nfe.tolist() == plain.records.nfe.tolist()
    assert free.records.completion == plain.records.completion
    assert free.records.metrics["remasks"].tolist() == [0.0] * 6


def test_who_is_confined_to_blocks_lets_stand_what_is_outside():
    plain = evaluate(InBlocks(make_strategy("confidence", k=1), 2), 6, **where())
    free = evaluate(InBlocks(make_strategy("confidence", k=1), 2), 6, **where(actions="set-state"))
    assert free.records.completion == plain.records.completion
    assert InBlocks(Wavering(), 2).plays == Wavering().plays


def test_texts_are_written_by_agents_that_take_back():
    seen = []
    text = generate(
        "12", Wavering(), ToyBackend(), completion_length=LENGTH, stop_at_eos=False,
        on_step=lambda index, text, step: seen.append(text),
    )  # fmt: skip
    assert text.steps == 4
    assert len(seen) == 4


def test_copies_and_states_remember_what_went_back():
    env = toy(max_remasks=1)
    env.reset(seed=0)
    env.step(bits(0, 1))
    observation, *_ = env.step(bits(1))
    state, twin = env.state(), copy.deepcopy(env)
    env.step(bits(0, 1))
    later, *_ = env.step(bits(0, 1, 2))
    np.testing.assert_array_equal(env.restore(state)["remasks"], observation["remasks"])
    for one in (env, twin):
        one.step(bits(0, 1))
        again, *_ = one.step(bits(0, 1, 2))
        for key in later:
            np.testing.assert_array_equal(again[key], later[key])
    assert again["action_mask"][0] == 0  # it went back once, and stands now


# Looking --------------------------------------------------------------------------------------------------


def test_films_show_what_goes_back():
    made = film([Wavering(), "random:k=2"], 0, **where())
    frames = [frames[0] for frames in made.frames]
    assert [int(frame.masked.sum()) for frame in frames] == [6, 0, 2, 0, 0]
    assert np.flatnonzero(frames[2].just_remasked).tolist() == [0, 1]
    assert "\x1b[91m" in render_ansi(frames[2])
    plain = SimpleNamespace(**{**frames[2].__dict__, "just_remasked": None})
    assert (render_rgb(frames[2]) != render_rgb(type(frames[2])(**plain.__dict__))).any()
    assert made.episodes[1].info["nfe"] > 0


def test_reports_tell_what_stood_when():
    frames = [one for (one,) in film([Wavering()], 0, **where()).frames]
    run = _player_run(frames, 1.0, "red")
    assert [(where, since, until) for where, since, until, _ in run["earlier"]] == [(0, 1, 2), (1, 1, 2)]
    assert [token for *_, token in run["earlier"]] == [frames[1].tokens[p] for p in (0, 1)]
    assert run["revealed"] == [3, 3, 1, 1, 1, 1]


def test_whoever_plays_by_hand_marks_what_goes_back():
    masked = np.array([True, False, True, False])
    turn = Turn.begin(np.ones(4, dtype=bool), np.full(4, 0.5, dtype=np.float32), 4, 0, masked)
    assert turn.action.tolist() == [False, True, False, True]
    for key in (" ", "right", " "):
        turn = turn.press(key)
    assert turn.action.tolist() == [True, False, False, True]
    assert turn.press("a").marked.tolist() == [True, True, True, False]  # what stands is not among the sure


def test_the_counterfactual_on_the_command_line():
    assert Place(forbid_remask=True).arguments() == {"forbid_remask": True}
    assert Place().arguments() == {}


def test_it_is_registered():
    env = gym.make("DLLMUnmask-v0", actions="set-state", completion_length=12)
    observation, info = env.reset(seed=0)
    env.step(np.arange(12) < 4)
    observation, *_, info = env.step(np.arange(12) < 3)
    assert info["action_mask"].all()
    assert observation["mask"].sum() == 9
    assert dllm_gym.FullInfo(env).reset()[1]["remasks"] == 0
