"""Post-training in which the policy learns from the episodes that it decodes for the dLLM."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deaths import posttrain_until
from safetensors.torch import load_file
from tiny_dllm import Ones, write_tiny_dllm

import dllm_gym.tasks
from dllm_agents import posttrain
from dllm_agents.checkpoint import load_policy, save_policy
from dllm_agents.config import with_settings
from dllm_agents.networks import UnmaskTransformer, UnmaskTransformerConfig
from dllm_agents.posttraining import running
from dllm_agents.posttraining.config import PosttrainConfig, load_posttrain_config, posttrain_config
from dllm_agents.posttraining.joint import Joint, PolicyLearner
from dllm_agents.posttraining.rollouts import Rollouts, collect
from dllm_gym.backends import own_backend
from dllm_gym.envs.engine import Engine
from dllm_gym.evaluation import as_agent, evaluate
from dllm_gym.files import read_json

SMALL = UnmaskTransformerConfig(width=8, heads=2, initial_bias=-0.5)


class Counted(Ones):
    """Ones, and how many zeros there are."""

    name = "counted"

    def metrics(self, completion: str, problem: Any) -> dict[str, float]:
        return {"zeros": completion.count("0") / self.completion_length}


@pytest.fixture(autouse=True)
def tasks(monkeypatch):
    monkeypatch.setitem(dllm_gym.tasks._TASKS, "ones", Ones)
    monkeypatch.setitem(dllm_gym.tasks._TASKS, "counted", Counted)


@pytest.fixture(scope="module")
def dllm(tmp_path_factory) -> Path:
    return write_tiny_dllm(tmp_path_factory.mktemp("dllm") / "tiny")


def write_policy(directory: Path, config: UnmaskTransformerConfig = SMALL, **options: Any) -> str:
    torch.manual_seed(0)
    return str(save_policy(directory, UnmaskTransformer(config), **options))


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> str:
    return write_policy(tmp_path_factory.mktemp("policy") / "small")


def config_of(dllm: Path, policy: str, **changes: Any) -> PosttrainConfig:
    fixed = {
        "agent": policy, "joint": {"learning_rate": 1e-2}, "groups_per_round": 2, "rounds": 4,
        "eval_every": 2, "eval_episodes": 4, "test_episodes": 4,
    }  # fmt: skip
    method = {"group_size": 4, "learning_rate": 1e-2, "samples": 2, **changes.pop("method_kwargs", {})}
    env = {"backend": str(dllm), "task": "ones", **changes.pop("env", {})}
    return PosttrainConfig(method_kwargs=method, env=env, **{**fixed, **changes})


def engine_of(dllm: Path, rows: int = 5, **changes: Any) -> Engine:
    fixed = {"task": "ones", "temperature": 1.0, "observe": ("entropy",)}
    return Engine(rows, backend=own_backend(dllm), **{**fixed, **changes})


def learner_of(policy: str, engine: Engine, **changes: Any) -> PolicyLearner:
    return PolicyLearner(load_policy(policy).network, Joint(**changes), engine, 4)


def decoded(learner: PolicyLearner, engine: Engine, seed: int = 1) -> tuple[Rollouts, dict[str, Any], Any]:
    """Two groups of four; the steps by key, those of an episode in a row, and the buffer's samples."""
    rollouts = collect(learner.player, engine, [0, 1], 4, seed, learner.finish)
    learner._steps.drop_flat = False
    learner._steps.complete()
    return rollouts, learner._steps._samples, next(learner._steps.get(None))


# What is learned from --------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_empty", ["best", "noop"])
@pytest.mark.parametrize("sampler", ["bernoulli", "bits"])
@pytest.mark.parametrize("computed_in", [torch.float32, torch.bfloat16])
def test_every_step_is_kept_with_the_likelihood_of_its_draw(dllm, policy, on_empty, sampler, computed_in):
    """Whatever the dLLM is computed in; in more episodes than there are rows."""
    engine = engine_of(dllm, on_empty=on_empty)
    learner = learner_of(policy, engine, sampler=sampler)
    with torch.autocast("cpu", torch.bfloat16, enabled=computed_in == torch.bfloat16):
        rollouts, steps, _ = decoded(learner, engine)
    assert len(steps["actions"]) == rollouts.steps.sum()
    network = load_policy(policy).network  # which has learned nothing
    observation = {key: torch.from_numpy(steps[key]) for key in network.config.requires}
    with torch.no_grad():
        p = torch.sigmoid(network(observation)).numpy()
    for at, (action, allowed) in enumerate(zip(steps["actions"], steps["action_mask"], strict=True)):
        bits = [math.log(p[at, k] if action[k] else 1 - p[at, k]) if allowed[k] else 0.0 for k in range(4)]
        expected = bits if sampler == "bits" else sum(bits)
        assert steps["log_probs"][at] == pytest.approx(expected, abs=1e-5)
        assert not (action & ~allowed).any()
    empty = (steps["actions"] == 0).all(axis=1)
    assert empty.any()  # the case that a fallback would hide
    first = np.isin(np.arange(len(empty)), np.cumsum(steps_of(rollouts, steps)) - steps_of(rollouts, steps))
    assert (steps["mask"][first] == 1).all()
    revealed = int((rollouts.reveal_step > 0).sum())
    drawn = int(steps["actions"].sum())
    assert revealed == drawn + (empty.sum() if on_empty == "best" else 0)


def steps_of(rollouts: Rollouts, steps: dict[str, Any]) -> np.ndarray:
    """Lengths of the episodes in the order they were handed out: a weight is the mean length over theirs."""
    mean = rollouts.steps.mean()
    lengths, at = [], 0
    while at < len(steps["weights"]):
        lengths.append(round(mean / steps["weights"][at]))
        at += lengths[-1]
    assert sorted(lengths) == sorted(rollouts.steps.tolist())
    return np.array(lengths)


@pytest.mark.parametrize("changes", [{}, {"loss_average": "step", "baseline": "leave-one-out"}])
def test_the_gradient_is_that_of_a_loop(dllm, policy, changes):
    """At the weights that drew: advantage times gradient of the log-likelihood, summed step by step."""
    engine = engine_of(dllm, alpha=3.0)
    learner = learner_of(policy, engine, **changes)
    rollouts, steps, batch = decoded(learner, engine)
    priced = rollouts.scores * ((4 - rollouts.steps + 1) / 4) ** 3
    assert rollouts.rewards == pytest.approx(priced)
    lengths = steps_of(rollouts, steps)
    earned = steps["returns"][np.cumsum(lengths) - lengths]  # of each episode
    assert sorted(earned) == pytest.approx(sorted(priced), abs=1e-6)
    groups = np.repeat(np.arange(2), 4)  # they are handed out group by group
    means = [earned[groups == group].mean() for group in range(2)]
    assert sorted(means) == pytest.approx(sorted([priced[:4].mean(), priced[4:].mean()]), abs=1e-6)
    network = load_policy(policy).network
    total, at = torch.zeros(()), 0
    for episode, length in enumerate(lengths):
        advantage = earned[episode] - means[groups[episode]]
        if changes:
            advantage *= 4 / 3
        for step in range(at, at + length):
            seen = {key: torch.from_numpy(steps[key][step : step + 1]) for key in network.config.requires}
            logits = network(seen)[0]
            for k in np.flatnonzero(steps["action_mask"][step]):
                signed = logits[k] if steps["actions"][step, k] else -logits[k]
                weight = 1 / len(batch.actions) if changes else 1 / (8 * length)
                total = total - weight * float(advantage) * torch.nn.functional.logsigmoid(signed)
        at += length
    total.backward()
    learner._loss(batch)[0].backward()
    pairs = list(zip(network.named_parameters(), learner._network.parameters(), strict=True))
    assert max(float(own.grad.abs().max()) for _, own in pairs) > 1e-3
    for (name, expected), own in pairs:
        torch.testing.assert_close(own.grad, expected.grad, atol=2e-5, rtol=1e-3, msg=name)


def test_the_policy_pays_for_steps_and_the_dllm_does_not(dllm, policy):
    engine = engine_of(dllm, task="counted", reward_metric="zeros", alpha=2.0)
    learner = learner_of(policy, engine)
    rollouts = collect(learner.player, engine, [0, 1], 4, 1, learner.finish)
    zeros = (rollouts.completions == engine.backend.tokenizer.convert_tokens_to_ids("0")).sum(axis=1)
    plain = ~rollouts.is_end.any(axis=1)  # text behind an end token is not counted
    assert rollouts.paid_for[plain] == pytest.approx(zeros[plain] / 4)
    assert rollouts.rewards == pytest.approx(rollouts.paid_for * ((5 - rollouts.steps) / 4) ** 2)
    assert (rollouts.unpriced().rewards == rollouts.paid_for).all()
    assert (rollouts.rewards != rollouts.paid_for).any()


def test_episodes_of_a_problem_are_told_the_same(dllm, policy):
    """Or their rewards would differ for other reasons than what was done."""
    engine = engine_of(dllm, alpha=[0.5, 8.0], block_length=[2, 4], observe=("entropy", "alpha"), rows=3)
    told: dict[int, set[Any]] = {group: set() for group in range(6)}

    def note(row: int, episode: Any) -> None:
        told[episode.position // 4].add((engine.alphas[row], int(engine.canvas.block_lengths[row])))

    collect(as_agent(policy), engine, range(6), 4, 1, note)
    assert all(len(values) == 1 for values in told.values())
    assert len(set.union(*told.values())) == 6
    assert {block for ((_, block),) in told.values()} == {2, 4}


# Runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["bernoulli", "bits"])
def test_a_run_that_is_interrupted_ends_with_the_same_bits(tmp_path, dllm, policy, sampler):
    config = config_of(dllm, policy, joint={"learning_rate": 1e-2, "batch_size": 5, "sampler": sampler})
    whole = posttrain(config, tmp_path / "whole")
    posttrain_until(3, config, tmp_path / "cut")
    torch.manual_seed(99)  # another process draws from elsewhere
    cut = posttrain(config, tmp_path / "cut", resume=True)
    one, other = (torch.load(run / "training_state.pt", weights_only=True) for run in (whole, cut))
    assert flat(one["policy"]) == flat(other["policy"])
    assert flat(one["parameters"]) == flat(other["parameters"])
    for name in ("model.safetensors", "policy/policy.safetensors"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()
    for row in (*one["history"], *other["history"]):
        del row["seconds"]
    assert one["history"] == other["history"]


def flat(state: Any) -> list[Any]:
    """All numbers of a state, in order."""
    if isinstance(state, dict):
        return [value for key in state for value in flat(state[key])]
    if isinstance(state, list | tuple):
        return [value for part in state for value in flat(part)]
    return state.flatten().tolist() if isinstance(state, torch.Tensor) else [state]


def test_a_run_leaves_a_dllm_and_its_policy(tmp_path, dllm, policy):
    run = posttrain(config_of(dllm, policy), tmp_path / "run", command="what was typed")
    learned, before = load_policy(run / "policy"), load_policy(policy)
    assert learned.network.config == before.network.config
    assert flat(dict(learned.network.state_dict())) != flat(dict(before.network.state_dict()))
    assert learned.decoding == "sample"
    description = read_json(run / "policy" / "policy.json")["metadata"]
    assert description["command"] == "what was typed"
    best = max(read_json(run / "metrics.json")["evaluations"][1:], key=lambda row: row["reward_mean"])
    assert description["validation"]["sample"] == best
    # they were trained together: the policy is at home with this dLLM, and decodes as it was tested
    found = evaluate(str(run / "policy"), best["episodes"], "validation")
    assert found.environment["backend"] == str(run)
    assert (found.accuracy, found.nfe_mean) == (best["accuracy"], best["nfe_mean"])
    assert found.reward_mean == best["reward_mean"]
    together = evaluate(str(run / "policy"), 4, backend=str(run), task="ones")
    results = read_json(run / "posttraining.json")["results"]
    assert results["after"]["accuracy"] == together.accuracy
    assert results["after"]["nfe_mean"] == together.nfe_mean
    apart = evaluate(policy, 4, backend=str(dllm), task="ones")
    assert results["before"]["nfe_mean"] == apart.nfe_mean
    assert "by the policy in `policy/`, which learned" in (run / "README.md").read_text(encoding="utf-8")
    assert load_posttrain_config(run / "config.yaml") == config_of(dllm, policy)


@pytest.mark.parametrize("still", ["policy", "dllm"])
def test_each_of_them_may_stand_still(tmp_path, dllm, policy, still):
    changes = (
        {"joint": {"learning_rate": 0}} if still == "policy" else {"method_kwargs": {"learning_rate": 0}}
    )
    run = posttrain(config_of(dllm, policy, rounds=2, **changes), tmp_path / "run")
    before, after = load_file(dllm / "model.safetensors"), load_file(run / "model.safetensors")
    same = all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert same == (still == "dllm")
    weights = [load_file(Path(place) / "policy.safetensors") for place in (policy, run / "policy")]
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items()) == (
        still == "policy"
    )


@pytest.mark.slow
def test_both_learn(tmp_path, dllm, policy):
    """The dLLM to write ones, the policy to do it in fewer steps."""
    config = config_of(
        dllm, policy, rounds=25, groups_per_round=8, eval_every=25, eval_episodes=64, env={"alpha": 2.0},
        joint={"learning_rate": 0.02},
        method_kwargs={"group_size": 8, "temperature": 1.0, "learning_rate": 0.02},
    )  # fmt: skip
    first, *_, last = read_json(posttrain(config, tmp_path / "run") / "metrics.json")["evaluations"]
    assert last["reward_mean"] > first["reward_mean"] + 0.4
    assert last["nfe_mean"] < first["nfe_mean"] - 0.5
    alone = replace(config, joint={"learning_rate": 0})
    *_, other = read_json(posttrain(alone, tmp_path / "alone") / "metrics.json")["evaluations"]
    assert other["reward_mean"] < last["reward_mean"] - 0.1


def test_rollouts_are_decoded_where_evaluations_are(tmp_path, dllm):
    """A policy's own task, dLLM and block length, joint or not, unless the configuration says otherwise."""
    home = {"task": "ones", "backend": str(dllm), "block_length": 2, "alpha": 3.0}
    agent = write_policy(tmp_path / "policy", metadata={"config": {"env": home}})
    for joint in (False, True):
        run = running._Run(PosttrainConfig(agent=agent, joint=joint), tmp_path / "run", False, False, "", 60)
        assert run.engine.blocks.choices == (2,)
        assert run.engine.task.name == "ones"
        assert run.backend.source == str(dllm)
        assert run.engine.prices.reward == ("multiplicative" if joint else "correctness")
    told = {"block_length": 4, "reward": "additive"}
    run = running._Run(PosttrainConfig(agent=agent, env=told), tmp_path / "run", False, False, "", 60)
    assert (run.engine.blocks.choices, run.engine.prices.reward) == ((4,), "additive")


# What is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("joint", "message"),
    [
        (None, "joint must be true or false, or hold names and values, got None"),
        ("yes", "joint must be true or false, or hold names and values, got 'yes'"),
        ({"sampler": "dpls"}, "unknown sampler 'dpls'; choose one of bernoulli, bits"),
        ({"ent_coef": 0.1}, "joint: got an unexpected keyword argument 'ent_coef'; it accepts learning_rate"),
        ({"learning_rate": -1}, "learning_rate must be a finite number of at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"n_epochs": 1.5}, "n_epochs must be a whole number of at least 1, got 1.5"),
        ({"baseline": "critic"}, "unknown baseline 'critic'; choose one of mean, leave-one-out"),
        ({"scale": "all"}, "unknown scale 'all'; choose one of none, group, batch"),
        ({"loss_average": "bit"}, "unknown loss_average 'bit'; choose one of sequence, step"),
    ],
)
def test_values_out_of_range_speak(joint, message):
    with pytest.raises(ValueError, match=message):
        posttrain_config({"joint": joint})


def test_what_is_said_of_joint_is_what_is_learned_with():
    assert posttrain_config({}).made_joint() is None
    for said in (["joint=true"], ["joint={}"]):
        assert posttrain_config(with_settings({}, said)).made_joint() == Joint()
    assert posttrain_config(with_settings({}, ["joint.clip_range=0.5"])).made_joint() == Joint(clip_range=0.5)


def test_an_agent_that_cannot_learn_is_refused(tmp_path, dllm, policy):
    ordered = write_policy(tmp_path / "ordered", decoding="dpls")
    reading = replace(SMALL, features=(*SMALL.features, "hidden"), hidden_width=16)
    wide = write_policy(tmp_path / "wide", reading)
    refused = {
        "confidence:k=2": "agent must be one, such as policy:arithmetic-full .* got 'confidence:k=2'",
        ordered: "sampler 'dpls', whose draws have an order that decoding does not keep",
        f"{policy}:deterministic": "as it draws, without options .*'decoding': 'deterministic'",
        f"{policy}:temperature=0.5": "as it draws, without options .*'temperature': 0.5",
        wide: "hidden states have width 8, this network is made for a dLLM of width 16",
    }
    for agent, message in refused.items():
        with pytest.raises(ValueError, match=message):
            posttrain(config_of(dllm, agent), tmp_path / "run")
        assert not (tmp_path / "run" / "config.yaml").exists()


def test_the_state_of_another_policy_is_refused(tmp_path, dllm, policy):
    other = write_policy(tmp_path / "other", replace(SMALL, width=12))
    state = learner_of(other, engine_of(dllm)).state()
    learner = learner_of(policy, engine_of(dllm))
    with pytest.raises(ValueError, match=r"state\.pt, policy, network"):
        learner.restore(state, "state.pt, policy")
    with pytest.raises(ValueError, match=r"state\.pt, policy must hold network, optimizer, got None"):
        learner.restore(None, "state.pt, policy")
