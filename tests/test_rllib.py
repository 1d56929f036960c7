"""RLlib: the module is our network, runners lose no episode, and what is learned is a policy of ours.

Ray pins a Gymnasium of its own, so these tests run in an environment of their own: ``make test-rllib``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_libraries import ROOT, rewards, run_alone, snippets

import dllm_gym
from dllm_agents import load_policy, save_policy, train
from dllm_agents.agent import LearnedPolicy
from dllm_agents.config import TrainConfig
from dllm_agents.distributions import bernoulli_log_prob, masked_logits
from dllm_agents.run import begin_with
from dllm_agents.run_folder import read_run
from dllm_gym.envs.engine import Engine
from dllm_gym.evaluation.decode import decode

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs Ray in an environment of its own: make test-rllib", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own
    import ray
    from ray.rllib.core.columns import Columns
    from ray.train.constants import DEFAULT_STORAGE_PATH

    from dllm_agents.rllib import (
        MaskedBernoulli,
        WholeEpisodeRunner,
        learned_network,
        ppo_config,
        set_network,
    )
    from dllm_agents.rllib.training import RLlibRun

pytestmark = pytest.mark.filterwarnings("ignore")

SUDOKU = {"task": "sudoku", "on_empty": "noop"}
LENGTH = 16
SMALL = {"train_batch_size_per_learner": 256, "minibatch_size": 128, "num_epochs": 2, "grad_clip": 0.5}


def small_config(**changes: Any) -> Any:
    return ppo_config(SUDOKU, **{"policy": {"width": 32}, "num_envs": 8, "lr": 3e-3, **SMALL, **changes})


@pytest.fixture(scope="module")
def cluster():
    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="error")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not find the tests
    yield
    ray.shutdown()


@pytest.fixture
def local(cluster):
    """Everything in this process."""
    algorithm = small_config().build_algo()
    yield algorithm
    algorithm.stop()


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def observations(rows: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 2, (rows, LENGTH), generator=generator).to(torch.int8)
    return {
        "confidence": torch.rand(rows, LENGTH, generator=generator),
        "mask": mask,
        "action_mask": mask * torch.randint(0, 2, (rows, LENGTH), generator=generator).to(torch.int8),
        "progress": torch.rand(rows, 1, generator=generator),
    }


# The module -------------------------------------------------------------------------------------------------


def test_the_distribution_knows_the_mask_from_the_logits():
    torch.manual_seed(0)
    logits, others = 3 * torch.randn(2, 500, LENGTH)
    mask = torch.randint(0, 2, (500, LENGTH))
    mask[0] = 0  # the last observation of an episode
    p, q = (MaskedBernoulli.from_logits(masked_logits(b, mask)) for b in (logits, others))
    actions = p.sample()
    assert actions.dtype == torch.int8
    assert ((actions == 0) | (mask == 1)).all()
    assert torch.equal(p.logp(actions), bernoulli_log_prob(logits, mask, actions))
    reference, other = (torch.distributions.Bernoulli(logits=b) for b in (logits, others))
    torch.testing.assert_close(p.entropy(), (reference.entropy() * mask).sum(-1), rtol=1e-4, atol=1e-4)
    kl = torch.distributions.kl_divergence(reference, other)
    torch.testing.assert_close(p.kl(q), (kl * mask).sum(-1), rtol=1e-3, atol=1e-3)
    certain = p.to_deterministic().sample()
    assert ((certain.sum(-1) > 0) == mask.any(-1)).all()
    assert ((certain == 0) | (mask == 1)).all()


def test_the_module_is_our_network(local, tmp_path):
    module = local.learner_group._learner.module["default_policy"]
    saved = load_policy(save_policy(tmp_path / "policy", learned_network(local))).network
    observation = observations(50)
    with torch.no_grad():
        expected, values = saved.forward_actor_critic(observation)
        expected = masked_logits(expected, observation["action_mask"])
        trained = module.forward_train({Columns.OBS: observation})
        for forward in (module.forward_exploration, module.forward_inference):
            assert torch.equal(forward({Columns.OBS: observation})[Columns.ACTION_DIST_INPUTS], expected)
        assert torch.equal(trained[Columns.ACTION_DIST_INPUTS], expected)
        given = module.compute_values({Columns.OBS: observation}, trained[Columns.EMBEDDINGS])
        assert torch.equal(given, values)
        assert torch.equal(module.compute_values({Columns.OBS: observation}), values)
    ours = LearnedPolicy(saved, decoding="deterministic")
    theirs = MaskedBernoulli.from_logits(expected).to_deterministic().sample().numpy()
    np.testing.assert_array_equal(
        ours.act({key: value.numpy() for key, value in observation.items()}), theirs
    )


def test_advantages_have_no_discount(local):
    """With gamma and lambda 1 the target of every step is what its episode earned in the end."""
    episodes = local.env_runner.sample()
    expected = np.concatenate([np.full(len(episode), episode.get_return()) for episode in episodes])
    learner = local.learner_group._learner
    batch = learner._learner_connector(
        rl_module=learner.module, batch={}, episodes=episodes, shared_data={}, metrics=learner.metrics
    )["default_policy"]
    valid = batch[Columns.LOSS_MASK]
    targets = batch["value_targets"][valid].numpy()
    np.testing.assert_allclose(targets, expected, atol=1e-5)
    assert len(set(expected)) > 1


def test_ratios_of_the_first_update_are_one_where_tokens_go_back(cluster):
    env = {**SUDOKU, "actions": "set-state", "max_remasks": 1, "max_steps": 24}
    algorithm = ppo_config(env, policy={"width": 16, "keep_prior": 0.5}, num_envs=8, **SMALL).build_algo()
    try:
        test_ratios_of_the_first_update_are_one(algorithm)
        algorithm.train()
    finally:
        algorithm.stop()


def test_ratios_of_the_first_update_are_one(local):
    episode = max(local.env_runner.sample(), key=len)
    observation = {key: torch.as_tensor(value[:-1]) for key, value in episode.get_observations().items()}
    logits = local.get_module()({Columns.OBS: observation})[Columns.ACTION_DIST_INPUTS]
    again = MaskedBernoulli.from_logits(logits).logp(torch.as_tensor(episode.get_actions()))
    then = torch.as_tensor(episode.get_extra_model_outputs(Columns.ACTION_LOGP))
    torch.testing.assert_close(again, then, atol=1e-4, rtol=1e-4)


def test_resources_reach_rllib():
    config = small_config(resources={"num_gpus_per_env_runner": 0.5, "num_cpus_per_learner": 3})
    assert (config.num_gpus_per_env_runner, config.num_cpus_per_learner) == (0.5, 3)
    assert (config.gamma, config.lambda_, config.use_kl_loss) == (1.0, 1.0, False)
    for nonsense in ({"resources": {"num_gpus_per_runner": 1}}, {"n_steps": 9}):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            small_config(**nonsense)


def test_features_are_observed_and_sized(cluster):
    features = ["confidence", "top_k", "mask", "progress"]
    config = small_config(policy={"width": 16, "features": features}).environment(
        env_config={**SUDOKU, "observe": ["top_k"], "top_k": 3}
    )
    runner = WholeEpisodeRunner(config=config, worker_index=1, num_workers=1)
    assert runner.module.network.config.num_columns == 4
    assert small_config(policy={"features": features}).env_config["observe"] == (
        "confidence", "top_k", "mask", "progress",
    )  # fmt: skip


# Episodes ---------------------------------------------------------------------------------------------------


def runner(index: int = 1, **changes: Any) -> WholeEpisodeRunner:
    """Steps 8 rows 12 times per sample, fewer than most episodes have."""
    config = small_config(train_batch_size_per_learner=96, minibatch_size=48, **changes)
    return WholeEpisodeRunner(config=config, worker_index=index, num_workers=2)


def problems_of_rows(seed: int, count: int) -> list[list[int]]:
    """What each of 8 rows is given, one after the other, by the environment itself."""
    envs = gym.make_vec(dllm_gym.ENV_ID, num_envs=8, autoreset_mode="SameStep", split="train", **SUDOKU)
    _, infos = envs.reset(seed=seed)
    rows = [[int(problem)] for problem in infos["problem"]]
    while min(map(len, rows)) < count:
        _, _, _, _, infos = envs.step(np.ones((8, LENGTH)))  # everything at once: one step each
        for row, problem in zip(rows, infos["problem"], strict=True):
            row.append(int(problem))
    return rows


def test_episodes_are_whole_and_none_is_lost(monkeypatch):
    seeds = []
    sampler = runner()
    reset = sampler.env.reset
    monkeypatch.setattr(sampler.env, "reset", lambda **given: seeds.append(given["seed"]) or reset(**given))
    episodes: list[Any] = []
    steps = 0
    for _ in range(12):
        sampled = sampler.sample()
        metrics = sampler.get_metrics()
        steps += int(metrics["num_env_steps_sampled"])
        if sampled:
            returns = [episode.get_return() for episode in sampled]
            assert float(metrics["episode_return_max"]) >= max(returns)
            assert float(metrics["episode_return_max"]) <= 1
            assert int(metrics["unmask"]["episodes"]) == len(sampled)
            assert int(metrics["unmask"]["nfe"]) == sum(map(len, sampled))
        episodes += sampled
    assert len(seeds) == 1
    for episode in episodes:
        assert episode.is_terminated
        assert (episode.get_observations(0)["mask"] == 1).all()
        assert len(episode) == episode.get_infos(-1)["nfe"]
        assert (np.array(episode.get_rewards())[:-1] == 0).all()
        assert episode.get_infos(0)["problem"] == episode.get_infos(-1)["problem"]
    returned = [episode.get_infos(0)["problem"] for episode in episodes]
    assert len(returned) > 40
    rows = problems_of_rows(seeds[0], len(returned))
    # Of every row the first few problems, without a gap, however long each of them took.
    assert sorted(returned) == sorted(
        problem for row in rows for problem in row[: len(set(row) & set(returned))]
    )
    waiting = sum(len(episode) for episode in sampler._begun.values())
    assert sum(len(episode) for episode in episodes) + waiting == steps


def test_other_runners_and_later_ones_see_other_problems(monkeypatch):
    later = runner()
    later.num_env_steps_sampled_lifetime = 1000  # as RLlib says to a runner that replaces a dead one
    problems = []
    for sampler in (runner(), runner(2), later, runner(seed=1), runner()):
        reset = sampler.env.reset

        def watch(reset: Any = reset, **given: Any) -> Any:
            observation, infos = reset(**given)
            problems.append({info["problem"] for info in infos})
            return observation, infos

        monkeypatch.setattr(sampler.env, "reset", watch)
        sampler.sample()
    assert problems[0] == problems[4]
    for first in range(4):
        assert len(problems[first]) == 8
        for second in range(first):
            assert not problems[first] & problems[second]


def test_a_process_without_a_gpu_takes_none(monkeypatch):
    """Ray shows it all of them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert runner().config.env_config["backend_kwargs"] == {"device": "cpu"}
    chosen = {"device": torch.device("cpu"), "dtype": "float32"}
    config = small_config().environment(env_config={**SUDOKU, "backend_kwargs": chosen})
    own = WholeEpisodeRunner(config=config, worker_index=1, num_workers=1)
    assert own.config.env_config["backend_kwargs"] == chosen


# Two processes that sample ----------------------------------------------------------------------------------


def write_down(path: Path, episode: Any, **_: Any) -> None:
    """What Ray's evaluation did with a problem."""
    info = episode.get_infos(-1)
    line = {key: info[key] for key in ("problem", "nfe", "is_success", "completion")}
    with path.open("a") as file:
        file.write(json.dumps(line, default=int) + "\n")


@pytest.fixture(scope="module")
def two_runners(cluster, tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluation") / "episodes.jsonl"
    evaluation = {
        "explore": False,
        "num_envs_per_env_runner": 1,  # several rows at once would favour short episodes
        "env_config": {**SUDOKU, "split": "test"},
        "callbacks_on_episode_end": partial(write_down, path),
    }
    config = small_config(num_env_runners=2).evaluation(
        evaluation_num_env_runners=0,
        evaluation_interval=10**6,
        evaluation_duration=40,
        evaluation_duration_unit="episodes",
        evaluation_config=evaluation,
    )
    algorithm = config.build_algo()
    yield algorithm, path
    algorithm.stop()


def of_runners(algorithm: Any, what: Any) -> list[Any]:
    return algorithm.env_runner_group.foreach_env_runner(what, local_env_runner=False)


def test_two_runners_train(two_runners):
    algorithm, _ = two_runners
    before = weights(learned_network(algorithm))
    for iteration in range(1, 3):
        result = algorithm.train()
        assert 256 * iteration <= result["env_runners"]["num_env_steps_sampled_lifetime"] < 300 * iteration
        assert 0 <= result["env_runners"]["episode_return_mean"] <= 1
    after = weights(learned_network(algorithm))
    assert not torch.equal(before, after)
    assert torch.isfinite(after).all()
    states = of_runners(algorithm, lambda sampler: (os.getpid(), weights(sampler.module)))
    assert len({os.getpid(), *(pid for pid, _ in states)}) == 3
    for _, theirs in states:
        assert torch.equal(theirs, after)


def test_ray_evaluates_as_we_do(two_runners, tmp_path):
    """The same problems, the same texts, the same number of steps."""
    algorithm, path = two_runners
    network = learned_network(algorithm)
    begin_with(network, "sudoku-full")
    set_network(algorithm, network)
    path.write_text("")
    theirs = algorithm.evaluate()["env_runners"]
    episodes = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(episodes) == 40
    policy = load_policy(
        save_policy(tmp_path / "policy", learned_network(algorithm)), decoding="deterministic"
    )
    engine = Engine(16, split="test", observe=policy.requires, **SUDOKU)
    ours = {done.position: done.info for done in decode(policy, engine, [one["problem"] for one in episodes])}
    assert episodes == [{key: ours[position][key] for key in episodes[0]} for position in range(40)]
    assert theirs["unmask"]["is_success"] == sum(episode["is_success"] for episode in episodes)
    assert theirs["episode_len_mean"] == pytest.approx(np.mean([episode["nfe"] for episode in episodes]))
    assert len({episode["nfe"] for episode in episodes}) > 1


def test_a_runner_that_dies_is_replaced(two_runners):
    algorithm, _ = two_runners
    begun = algorithm.metrics.peek(("env_runners", "num_env_steps_sampled_lifetime"))
    (dead, *_) = of_runners(algorithm, lambda sampler: os.getpid())
    os.kill(dead, signal.SIGKILL)
    deadline = time.monotonic() + 600  # starting a process takes minutes where others keep the cores busy
    iterations = 0
    while iterations < 2 or algorithm.env_runner_group.num_healthy_remote_workers() < 2:
        assert time.monotonic() < deadline
        algorithm.train()
        iterations += 1
    result = algorithm.train()
    assert result["env_runners"]["num_env_steps_sampled_lifetime"] >= begun + 256 * (iterations + 1)
    states = of_runners(algorithm, lambda sampler: (os.getpid(), weights(sampler.module)))
    assert len(states) == 2
    assert dead not in [pid for pid, _ in states]
    for _, theirs in states:
        assert torch.equal(theirs, weights(learned_network(algorithm)))


def test_a_process_that_learns(cluster):
    algorithm = small_config(num_learners=1).build_algo()
    try:
        before = weights(learned_network(algorithm))
        algorithm.train()
        after = weights(learned_network(algorithm))
        assert not torch.equal(before, after)
        assert torch.equal(weights(algorithm.get_module()), after)
    finally:
        algorithm.stop()


# Runs -------------------------------------------------------------------------------------------------------


def run_config(**changes: Any) -> TrainConfig:
    settings = {
        "algorithm": "rllib-ppo",
        "env": SUDOKU,
        "num_envs": 16,
        "group_size": 1,
        "total_timesteps": 1024,
        "learning_rate": 3e-3,
        "algorithm_kwargs": SMALL,
        "policy": {"width": 16},
        "eval_every": 512,
        "eval_episodes": 12,
    }
    return TrainConfig(**{**settings, **changes})


def rows_of(directory: Path) -> list[dict[str, Any]]:
    return json.loads((directory / "metrics.json").read_text())["evaluations"]


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory):
    """Two processes that sample, through the front door."""
    directory = tmp_path_factory.mktemp("runs") / "finished"
    return train(run_config(workers={"num_env_runners": 2}), directory, command="dllm-gym train rllib-ppo")


def test_what_a_run_leaves(finished):
    rows = rows_of(finished)
    np.testing.assert_allclose([row["timesteps"] for row in rows], [512, 1024], atol=100)
    for name in ("last", "best"):
        agent = load_policy(finished / name, decoding="deterministic")
        result = dllm_gym.evaluate(agent, 12, "validation", **SUDOKU)
        stored = json.loads((finished / name / "policy.json").read_text())["metadata"]["validation"]
        assert stored in rows
        assert result.reward_mean == pytest.approx(stored["deterministic"]["reward_mean"])


def read_events(directory: Path) -> EventAccumulator:
    events = EventAccumulator(str(directory))
    events.Reload()
    return events


def test_curves(finished):
    events = read_events(finished)
    for tag in ("unmask/accuracy", "unmask/empty_action_rate", "eval/accuracy_sample"):
        assert all(0 <= event.value <= 1 for event in events.Scalars(tag))
    steps = np.array([event.step for event in events.Scalars("rollout/ep_rew_mean")])
    np.testing.assert_allclose(steps, [256, 512, 768, 1024], atol=100)
    rates = [event.value for event in events.Scalars("train/learning_rate")]  # of the update that follows
    np.testing.assert_allclose(rates, 3e-3 * np.maximum(1 - steps / 1024, 0), atol=1e-6)
    assert {"train/value_loss", "train/entropy", "time/fps"} <= set(events.Tags()["scalars"])


class Interrupted(Exception):
    pass


def test_a_run_goes_on_where_it_was(cluster, tmp_path, monkeypatch):
    """Weights, optimiser, learning rate, counts and best reward are those of the moment it was saved."""
    config, directory = run_config(total_timesteps=1536), tmp_path / "run"
    iterate, restored = RLlibRun._iterate, []

    def die(self: Any) -> None:
        self._evaluate_really = self._evaluate
        self._evaluate = lambda: (self._evaluate_really(), (_ for _ in ()).throw(Interrupted))[0]
        iterate(self)

    with monkeypatch.context() as patch:
        patch.setattr(RLlibRun, "_iterate", die)
        with pytest.raises(Interrupted):
            train(config, directory)
    last = weights(load_policy(directory / "last").network)
    told = read_run(directory)
    assert told is not None
    assert len(told["evaluations"]) == 1

    def look(self: Any) -> None:
        learner = self.algorithm.learner_group._learner
        (optimizer,) = learner._named_optimizers.values()
        moments = next(iter(optimizer.state.values()))
        restored.append((self.timesteps, weights(learned_network(self.algorithm)), int(moments["step"])))
        restored.append(optimizer.param_groups[0]["lr"])
        iterate(self)

    monkeypatch.setattr(RLlibRun, "_iterate", look)
    train(config, directory, resume=True)
    (timesteps, resumed, updates), rate = restored
    assert timesteps == rows_of(directory)[0]["timesteps"] < 700
    assert torch.equal(resumed, last)
    assert updates > 2
    assert rate == pytest.approx(3e-3 * (1 - timesteps / 1536))
    rows = rows_of(directory)
    np.testing.assert_allclose([row["timesteps"] for row in rows], [512, 1024, 1536], atol=200)
    best = json.loads((directory / "best" / "policy.json").read_text())["metadata"]["validation"]
    assert best["sample"]["reward_mean"] == max(row["sample"]["reward_mean"] for row in rows)
    assert len(list((directory / "checkpoints").iterdir())) == 1


def test_init_from_a_shipped_policy(cluster, tmp_path):
    config = run_config(
        policy={"width": 32}, init_from="sudoku-full", learning_rate=0.0, total_timesteps=1, eval_episodes=4
    )
    littered = Path(DEFAULT_STORAGE_PATH)
    before = set(littered.iterdir()) if littered.exists() else set()
    directory = train(config, tmp_path / "run")
    assert not littered.exists() or set(littered.iterdir()) <= before
    theirs, ours = (load_policy(name).network.state_dict() for name in ("sudoku-full", directory / "last"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": {"tusk": "sudoku"}}, r"unknown arguments \['tusk'\] in env; known: backend, "),
        (
            {"policy": {"critic": False}},
            r"unknown arguments \['critic'\] in policy; known: features, width",
        ),
        (
            {"algorithm_kwargs": {"n_steps": 9}},
            r"unknown arguments \['n_steps'\] in algorithm_kwargs; known: ",
        ),
        (
            {"workers": {"num_env_runners": 2, "num_gpus_per_env_runner": 1}},
            r"need 2 GPUs in all, Ray's cluster has 0",
        ),
        ({"init_from": "sudoku-full"}, r"cannot go on from the policy sudoku-full: it has width 32 instead"),
    ],
)
def test_what_does_not_work_leaves_nothing_behind(cluster, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(run_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_learns(cluster, tmp_path):
    """Fewer steps, and still right."""
    training = {**SMALL, "train_batch_size_per_learner": 1024, "minibatch_size": 256, "num_epochs": 4}
    config = run_config(
        num_envs=32,
        total_timesteps=5_120,
        learning_rate=1e-3,
        algorithm_kwargs={**training, "vf_loss_coeff": 0.5},
        policy={"width": 32},
        eval_every=10_000,
        eval_episodes=48,
    )
    directory = train(config, tmp_path / "run")
    (row,) = rows_of(directory)
    first = read_events(directory).Scalars("rollout/ep_rew_mean")[0].value
    assert row["sample"]["reward_mean"] > first + 0.1


# The page and the example -----------------------------------------------------------------------------------


def test_the_example_learns_and_its_policy_evaluates(tmp_path):
    """In a process of its own, which starts Ray as a user would."""
    arguments = ["--num-env-runners", "0", "--iterations", "3", "--output", str(tmp_path / "run")]
    curve = rewards(run_alone(tmp_path, ROOT / "examples" / "rllib_ppo.py", *arguments))
    assert len(curve) == 3
    assert curve[-1] > curve[0]
    assert dllm_gym.evaluate(str(tmp_path / "run"), 16, task="sudoku").episodes == 16


def test_the_snippet_of_the_page_runs(tmp_path):
    run_alone(tmp_path, "-c", snippets("RLlib"))
    assert dllm_gym.evaluate(str(tmp_path / "runs" / "rllib"), 8, task="sudoku").episodes == 8


TWO_NODES = """
import os, ray
from ray.cluster_utils import Cluster
from dllm_agents import train
from dllm_agents.config import TrainConfig
from dllm_agents.rllib.training import RLlibRun

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
os.environ["RAY_ADDRESS"] = cluster.address
iterate = RLlibRun._iterate

def tell(self):
    where = lambda runner: ray.get_runtime_context().get_node_id()
    nodes = self.algorithm.env_runner_group.foreach_env_runner(where, local_env_runner=False)
    print("nodes", len(set(nodes)))
    iterate(self)

RLlibRun._iterate = tell
train(TrainConfig(**SETTINGS), "run")
print("still there", ray.is_initialized())
cluster.shutdown()
"""


def test_a_cluster_of_two_nodes(tmp_path):
    """Two of Ray's nodes on this machine, with a processor each: one runner goes to either."""
    settings = run_config(workers={"num_env_runners": 2}, total_timesteps=256, eval_episodes=4).to_dict()
    printed = run_alone(tmp_path, "-c", TWO_NODES.replace("SETTINGS", repr(settings)))
    assert "nodes 2" in printed
    assert "still there False" in printed
    assert load_policy(tmp_path / "run" / "last")
