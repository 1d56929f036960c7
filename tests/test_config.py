"""Training configurations: what is accepted, what is refused and in which words, and the YAML between."""

from __future__ import annotations

import json
import re
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import yaml

import dllm_agents.config
from dllm_agents.config import ALGORITHMS, TrainConfig, find_config, load_config
from dllm_agents.training import train

SHIPPED = sorted((Path(dllm_agents.config.__file__).parents[1] / "configs").glob("*.yaml"))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# Values -----------------------------------------------------------------------------------------------------


def test_defaults_are_valid():
    config = TrainConfig()
    assert config.algorithm in ALGORITHMS
    assert config.num_envs % config.group_size == 0


@pytest.mark.parametrize("name", ["ppo-full", "a2c-full"])
@pytest.mark.parametrize("steps", [1, 9, 20_000, 800_000])
def test_a_training_of_any_length_is_evaluated_ten_times(name, steps):
    """``examples/ppo_against_a2c.py`` draws curves of them, of whatever ``--total-timesteps``."""
    config = load_config(find_config(name)).updated(total_timesteps=steps)
    assert min(steps, 5) <= steps // config.eval_interval <= 10
    assert config.updated(eval_every=7).eval_interval == 7
    assert load_config(find_config("scratch/grpo")).eval_interval == 100_000


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("algorithm", "dqn", r"unknown algorithm 'dqn'; choose one of grpo, ppo, a2c, success, rllib-ppo"),
        ("num_envs", 0, r"num_envs must be a whole number of at least 1, got 0"),
        ("group_size", 0, r"group_size must be a whole number of at least 1, got 0"),
        ("group_size", True, r"group_size must be a whole number of at least 1, got True"),
        ("total_timesteps", 1e6, r"total_timesteps must be a whole number of at least 1, got 1000000.0"),
        ("total_timesteps", "many", r"total_timesteps must be a whole number of at least 1, got 'many'"),
        ("eval_every", -1, r"eval_every must be a whole number of at least 1, got -1"),
        ("eval_episodes", None, r"eval_episodes must be a whole number of at least 1, got None"),
        ("learning_rate", -1e-3, r"learning_rate must lie in \[0, 1\), got -0.001"),
        ("learning_rate", 1.0, r"learning_rate must lie in \[0, 1\), got 1.0"),
        ("learning_rate", "fast", r"learning_rate must lie in \[0, 1\), got 'fast'"),
        ("learning_rate", False, r"learning_rate must lie in \[0, 1\), got False"),
        ("final_learning_rate", float("nan"), r"final_learning_rate must lie in \[0, 1\), got nan"),
        ("decay", "steps", r"unknown decay 'steps'; choose one of linear, cosine"),
        ("warmup", 1, r"warmup must lie in \[0, 1\), got 1"),
        ("max_minutes", 0, r"max_minutes must be positive and finite, or null, got 0"),
        ("max_minutes", float("nan"), r"max_minutes must be positive and finite, or null, got nan"),
        ("max_minutes", float("inf"), r"max_minutes must be positive and finite, or null, got inf"),
        ("max_minutes", "long", r"max_minutes must be positive and finite, or null, got 'long'"),
        ("seed", -1, r"seed must be a whole number from 0 to 2\*\*32 - 1, got -1"),
        ("seed", None, r"seed must be a whole number from 0 to 2\*\*32 - 1, got None"),
        ("expert_block_length", 0, r"expert_block_length must be a whole number of at least 1, got 0"),
        ("expert", ["fast-dllm"], r"expert must be a text or null, got \['fast-dllm'\]"),
        ("init_from", 1, r"init_from must be a text or null, got 1"),
        ("env", None, r"env must hold names and values, got None"),
        ("policy", [], r"policy must hold names and values, got \[\]"),
        ("algorithm_kwargs", "n_steps", r"algorithm_kwargs must hold names and values, got 'n_steps'"),
    ],
)
def test_out_of_range(field, value, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{field: value})
    with pytest.raises(ValueError, match=message):
        TrainConfig().updated(**{field: value})


def test_group_size_is_at_most_num_envs():
    with pytest.raises(ValueError, match=r"group_size 8 must not exceed num_envs 7"):
        TrainConfig(num_envs=7, group_size=8)
    assert TrainConfig(num_envs=12, group_size=8).group_size == 8
    assert TrainConfig(algorithm="ppo", num_envs=7, group_size=1).group_size == 1


EXPERT = "fast-dllm:threshold=0.9"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, r"grpo needs a group_size of at least 2, got 1"),
        ({"num_experts": -1}, r"num_experts must be a whole number of at least 0, got -1"),
        ({"num_experts": True}, r"num_experts must be a whole number of at least 0, got True"),
        ({"imitation_steps": 1.5}, r"imitation_steps must be a whole number of at least 0, got 1.5"),
        ({"num_experts": 1}, r"expert None goes together with num_experts or imitation_steps, got 1 and 0"),
        ({"imitation_steps": 9}, r"expert None goes together with num_experts or imitation_steps, got 0 and"),
        ({"expert": EXPERT}, r"expert 'fast-dllm:threshold=0.9' goes together with .* got 0 and 0"),
        (
            {"algorithm": "a2c", "expert": EXPERT, "num_experts": 2},
            r"num_experts is for grpo, got 2 with a2c",
        ),
        (
            {"expert": EXPERT, "imitation_steps": 11, "total_timesteps": 10},
            r"imitation_steps 11 exceeds total_timesteps 10",
        ),
        (
            {"expert": EXPERT, "num_experts": 1, "policy": {"sampler": "dpls"}},
            r"sampler 'dpls' needs groups and no expert, got group_size 8 and expert 'fast-dllm",
        ),
        (
            {"algorithm": "ppo", "group_size": 1, "policy": {"sampler": "dpls"}},
            r"sampler 'dpls' needs groups and no expert, got group_size 1 and expert None",
        ),
    ],
)
def test_what_does_not_go_together(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 8}, r"group_size must be 1 for rllib-ppo, got 8"),
        ({"decay": "cosine"}, r"decay must be 'linear' for rllib-ppo, got 'cosine'"),
        ({"expert": EXPERT, "imitation_steps": 9}, r"expert must be None for rllib-ppo, got 'fast-dllm"),
        (
            {"workers": {"num_runners": 2}},
            r"unknown workers 'num_runners'; known: num_env_runners, num_cpus_per_e",
        ),
        (
            {"workers": {"num_env_runners": -1}},
            r"num_env_runners must be a whole number of at least 0, got -1",
        ),
        ({"workers": {"num_learners": 0.5}}, r"num_learners must be a whole number of at least 0, got 0.5"),
        (
            {"workers": {"num_gpus_per_learner": "1"}},
            r"num_gpus_per_learner must be a finite number of at least 0, got '1'",
        ),
        ({"workers": 2}, r"workers must hold names and values, got 2"),
        (
            {"workers": {"num_env_runners": 3}},
            r"num_envs 128 must be a multiple of num_env_runners 3, which share them",
        ),
        ({"algorithm": "ppo", "workers": {"num_learners": 1}}, r"workers are for rllib-ppo, got .* with ppo"),
    ],
)
def test_what_rllib_does_not_do(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"algorithm": "rllib-ppo", "group_size": 1, **changes})


def test_shares_of_a_device_and_no_workers_at_all_are_fine():
    workers = {"num_env_runners": 4, "num_gpus_per_env_runner": 0.5, "num_learners": 0}
    assert TrainConfig(algorithm="rllib-ppo", group_size=1, workers=workers).workers == workers
    assert not TrainConfig(algorithm="rllib-ppo", group_size=1).workers


def test_the_configuration_for_several_machines_on_the_page_loads(tmp_path):
    page = Path(__file__).parents[1] / "docs" / "libraries.md"
    (block,) = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    config = load_config(write(tmp_path / "mine.yaml", block))
    assert config.num_envs // config.workers["num_env_runners"] == 32


def test_updated_is_a_copy():
    config = TrainConfig(seed=1)
    changed = config.updated(seed=2, max_minutes=0.5)
    assert (config.seed, config.max_minutes) == (1, None)
    assert (changed.seed, changed.max_minutes) == (2, 0.5)
    assert config.updated() == config
    with pytest.raises(FrozenInstanceError):
        config.seed = 3  # type: ignore[misc]


def test_updated_refuses_unknown_fields():
    with pytest.raises(ValueError, match=r"unknown configuration fields \['sede'\]; known: algorithm, env, "):
        TrainConfig().updated(sede=1)


# Files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path):
    config = load_config(path)
    assert path.stem.startswith(config.algorithm), "a configuration is named after its algorithm"
    assert find_config(path.stem) == path
    assert yaml.safe_load(yaml.safe_dump(config.to_dict())) == config.to_dict()


def test_there_are_shipped_configurations():
    assert {"grpo-full", "ppo-full", "a2c-full"} <= {path.stem for path in SHIPPED}


def test_round_trip(tmp_path):
    config = TrainConfig(
        env={"task": "arithmetic", "alpha": 0.5},
        algorithm_kwargs={"n_steps": 4, "clip_range": 1e-5},
        learning_rate=3e-5,
        max_minutes=2.5,
    )
    path = write(tmp_path / "config.yaml", yaml.safe_dump(config.to_dict()))
    assert load_config(path) == config


def test_missing_fields_take_their_defaults(tmp_path):
    path = write(tmp_path / "c.yaml", "algorithm: a2c\nseed: 3\n")
    assert load_config(path) == TrainConfig(algorithm="a2c", seed=3)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e-3", 1e-3),
        ("1E-3", 1e-3),
        ("1.e-3", 1e-3),
        ("1.5e-3", 1.5e-3),
        (".5e-3", 5e-4),
        ("+1e-3", 1e-3),
        ("0.001", 1e-3),
        ("1e-03", 1e-3),
    ],
)
def test_numbers_as_python_writes_them(tmp_path, text, number):
    path = write(
        tmp_path / "c.yaml",
        f"learning_rate: {text}\nalgorithm_kwargs:\n  ent_coef: {text}\n"
        f"policy:\n  optimizer_kwargs: {{betas: [{text}, 0.9], eps: {text}}}\n",
    )
    config = load_config(path)
    assert config.learning_rate == number
    assert config.algorithm_kwargs["ent_coef"] == number
    assert config.policy["optimizer_kwargs"] == {"betas": [number, 0.9], "eps": number}


def test_texts_stay_texts(tmp_path):
    path = write(tmp_path / "c.yaml", "env: {task: e-3, backend: 1e-3x, split: e5}\n")
    assert load_config(path).env == {"task": "e-3", "backend": "1e-3x", "split": "e5"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("algorithm: [", r"c\.yaml is not YAML"),
        ("- ppo", r"c\.yaml must hold fields and values, got list"),
        ("", r"c\.yaml must hold fields and values, got NoneType"),
        ("ppo", r"c\.yaml must hold fields and values, got str"),
        ("algo: ppo\nsteps: 3", r"unknown configuration fields \['algo', 'steps'\]; known: algorithm, env, "),
        ("algorithm: ppg", r"unknown algorithm 'ppg'"),
        ("env:\n", r"env must hold names and values, got None"),
    ],
)
def test_malformed_files(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path / "c.yaml", text))


def test_nothing_in_a_configuration_is_executed(tmp_path):
    path = write(tmp_path / "c.yaml", "seed: !!python/object/apply:os.getpid []\n")
    with pytest.raises(ValueError, match="is not YAML"):
        load_config(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_config(tmp_path / "none.yaml")


def test_find_config(tmp_path, monkeypatch):
    own = write(tmp_path / "mine.yaml", "seed: 1\n")
    assert find_config(own) == own
    assert find_config(str(own)) == own
    with pytest.raises(FileNotFoundError, match=r"no configuration 'mine'; known: .*ppo-full.*YAML file"):
        find_config("mine")
    with pytest.raises(FileNotFoundError, match=r"known: .*ppo-full"):
        find_config(tmp_path)
    nested = find_config("paper/llada-bl32")
    assert (nested.parent.name, nested.name) == ("paper", "llada-bl32.yaml")
    with pytest.raises(FileNotFoundError, match=r"known: .*paper/llada-bl32"):
        find_config("llada-bl32")
    # a folder of the same name in the current directory hides nothing
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ppo-full").mkdir()
    assert find_config("ppo-full").name == "ppo-full.yaml"


# Arguments that only the classes they go to can judge -------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": {"tsk": "arithmetic"}}, r"unknown arguments \['tsk'\] in env; known: backend, .*task"),
        ({"env": {"num_envs": 3}}, r"unknown arguments \['num_envs'\] in env"),
        ({"env": {"group_size": 2}}, r"unknown arguments \['group_size'\] in env"),
        ({"env": {"num_experts": 2}}, r"unknown arguments \['num_experts'\] in env"),
        ({"algorithm_kwargs": {"expert": EXPERT}}, r"unknown arguments \['expert'\] in algorithm_kwargs"),
        ({"expert": "nobody", "num_experts": 1}, r"'nobody' is neither a strategy"),
        ({"policy": {"optimizer_class": "Module"}}, r"unknown optimizer_class 'Module'; give a name out of"),
        ({"policy": {"optimizer_class": ["Adam"]}}, r"unknown optimizer_class \['Adam'\]"),
        (
            {"algorithm_kwargs": {"groups_per_rollout": 0}},
            r"groups_per_rollout must be a whole number of at least 1, got 0",
        ),
        (
            {"algorithm_kwargs": {"micro_batch_size": 0}},
            r"micro_batch_size must be a whole number of at least 1, got 0",
        ),
        (
            {"algorithm_kwargs": {"total_rounds": 0}},
            r"total_rounds must be a whole number of at least 1, got 0",
        ),
        ({"policy": {"widht": 3}}, r"unknown arguments \['widht'\] in policy; known: features, width"),
        (
            {"algorithm_kwargs": {"steps": 3}},
            r"unknown arguments \['steps'\] in algorithm_kwargs; known: n",
        ),
        ({"algorithm_kwargs": {"learning_rate": 0.1}}, r"unknown arguments \['learning_rate'\]"),
        (
            {"algorithm": "a2c", "algorithm_kwargs": {"clip_range": 0.1}},
            r"unknown arguments \['clip_range'\]",
        ),
        ({"env": {"task": "algebra"}}, r"unknown task 'algebra'; known tasks: arithmetic"),
        ({"env": {"task": object()}}, r"a configuration must hold plain values"),
    ],
)
def test_arguments_nobody_takes_leave_nothing_behind(tmp_path, changes, message):
    config = TrainConfig(num_envs=4, group_size=2).updated(**changes)
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Settings by name -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ppo-full", "paper/llada-bl32"])
def test_settings_are_read_as_they_are_told(name):
    config = load_config(find_config(name))
    written = [f"{key}={json.dumps(value)}" for key, value in config.settings().items()]
    assert TrainConfig(algorithm=config.algorithm).with_settings(written) == config


def test_a_setting_replaces_one_value():
    config = TrainConfig(env={"task": "sudoku", "task_kwargs": {"size": 4, "seed": 1}})
    changed = config.with_settings(["env.task_kwargs.size=6", "learning_rate=1e-3", "policy.features=[mask]"])
    env = {"task": "sudoku", "task_kwargs": {"size": 6, "seed": 1}}
    assert changed == config.updated(env=env, learning_rate=0.001, policy={"features": ["mask"]})
    assert config.env["task_kwargs"]["size"] == 4


def test_another_task_leaves_behind_what_belongs_to_the_former():
    env = {
        "task": "sudoku",
        "task_kwargs": {"size": 6},
        "backend": "tiny-sudoku",
        "block_length": 8,
        "alpha": 2.0,
    }
    assert TrainConfig(env=env).moved({"task": "arithmetic"}).env == {
        "task": "arithmetic",
        "block_length": 8,
        "alpha": 2.0,
    }
    assert TrainConfig(env=env).moved({"task": "sudoku"}).env == env
    large = {"task": "gsm8k", "backend": "GSAI-ML/LLaDA-8B-Instruct"}
    assert TrainConfig(env=large).moved({"task": "math500"}).env == {
        **large,
        "task": "math500",
        "block_length": None,
    }
