"""Other RL libraries: the examples learn and leave policies that our evaluator reads.

TorchRL and rl_zoo3 are optional; what needs them is skipped where they are absent. They run in a process of
their own, because importing them changes settings of torch and logging.
"""

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch
import yaml
from stable_baselines3 import PPO
from test_docs import ROOT, run_example

import dllm_gym
from dllm_agents import make_sb3_env
from dllm_agents.distributions import bernoulli_log_prob
from dllm_agents.sb3.policy import UnmaskPolicy

needs_torchrl = pytest.mark.skipif(
    importlib.util.find_spec("torchrl") is None, reason="needs TorchRL: pip install 'dllm-gym[torchrl]'"
)
needs_rl_zoo3 = pytest.mark.skipif(
    importlib.util.find_spec("rl_zoo3") is None, reason="needs rl_zoo3: see docs/libraries.md"
)
ZOO_FILE = ROOT / "examples" / "rl_zoo3_ppo.yml"


def run_alone(directory: Path, *arguments: object) -> str:
    """Runs Python in ``directory`` in a fresh process; returns what it printed."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "agents"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def snippets(title: str) -> str:
    """The Python of one section of the page on libraries."""
    page = (ROOT / "docs" / "libraries.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    found = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert found
    return "\n".join(found)


def rewards(printed: str) -> list[float]:
    return [float(number) for number in re.findall(r"reward (\d\.\d+)", printed)]


@pytest.mark.parametrize(
    ("title", "needed"),
    [
        ("Stable-Baselines3", "stable_baselines3"),
        ("sb3-contrib", "sb3_contrib"),
        ("Any other library", "gymnasium"),
    ],
)
def test_snippets_of_the_page_run(title, needed, monkeypatch, tmp_path):
    pytest.importorskip(needed)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippets(title), "docs/libraries.md", "exec"), {})  # our own text


def test_minari_records_infos(monkeypatch, tmp_path):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    (tmp_path / "record.py").write_text(snippets("Minari"), encoding="utf-8")
    assert run_alone(tmp_path, tmp_path / "record.py").startswith("[0 1 2")


# One file ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def single_file():
    """The functions of the example."""
    return runpy.run_path(str(ROOT / "examples" / "ppo_single_file.py"))


def test_ppo_in_one_file_learns_and_its_policy_evaluates(capsys, monkeypatch, tmp_path):
    run_example(monkeypatch, "ppo_single_file.py", "--total-timesteps", 8_192, "--output", tmp_path / "run")
    curve = rewards(capsys.readouterr().out)
    assert len(curve) == 4
    assert curve[-1] > curve[0] + 0.1
    trained = dllm_gym.evaluate(str(tmp_path / "run"), 64, task="sudoku")
    assert trained.reward_mean > curve[0] + 0.1


@pytest.mark.slow
def test_ppo_in_one_file_takes_tokens_back(capsys, monkeypatch, tmp_path):
    run_example(
        monkeypatch, "ppo_single_file.py", "--actions", "set-state", "--total-timesteps", 4_096,
        "--output", tmp_path / "run",
    )  # fmt: skip
    assert len(rewards(capsys.readouterr().out)) == 2
    result = dllm_gym.evaluate(str(tmp_path / "run"), 8)
    assert result.environment["actions"] == "set-state"
    assert result.records.metrics["remasks"].sum() > 0


def test_log_probability_is_that_of_the_whole_action(single_file):
    torch.manual_seed(0)
    logits = torch.randn(20, 7) * 5
    mask = (torch.rand(20, 7) < 0.5).to(torch.int8)
    actions = single_file["sample"](logits, mask)
    assert not actions[mask == 0].any()
    expected = bernoulli_log_prob(logits, mask, actions)
    torch.testing.assert_close(single_file["log_prob"](logits, mask, actions), expected)


def test_samples_have_the_probabilities_of_the_logits(single_file):
    torch.manual_seed(0)
    logits = torch.tensor([-2.0, 0.0, 3.0]).expand(4000, 3)
    share = single_file["sample"](logits, torch.ones(4000, 3)).float().mean(0)
    torch.testing.assert_close(share, logits[0].sigmoid(), atol=0.04, rtol=0)


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_gae_sums_the_temporal_differences_of_an_episode(single_file, lam):
    """Against the definition: sum over k of lam^k delta_{t+k}, up to the end of the episode or rollout."""
    torch.manual_seed(1)
    steps, rows = 9, 4
    rewards, values = torch.rand(steps, rows), torch.rand(steps, rows)
    ends, last = (torch.rand(steps, rows) < 0.3).float(), torch.rand(rows)
    actual = single_file["gae"](rewards, values, ends, last, lam)
    following = torch.cat([values[1:], last[None]])
    for row in range(rows):
        for t in range(steps):
            expected = 0.0
            for k in range(t, steps):
                over = bool(ends[k, row])
                delta = rewards[k, row] - values[k, row] + (0.0 if over else following[k, row])
                expected += lam ** (k - t) * float(delta)
                if over:
                    break
            assert actual[t, row].item() == pytest.approx(expected, abs=1e-5)


# TorchRL ----------------------------------------------------------------------------------------------------


@needs_torchrl
def test_torchrl_learns_and_its_policy_evaluates(tmp_path):
    printed = run_alone(
        tmp_path, ROOT / "examples" / "torchrl_ppo.py", "--total-timesteps", 8_192, "--output", "run"
    )
    curve = rewards(printed)
    assert len(curve) == 4
    assert curve[-1] > curve[0] + 0.1
    assert dllm_gym.evaluate(str(tmp_path / "run"), 64, task="sudoku").reward_mean > curve[0] + 0.1


TORCHRL_CHECK = """
from torchrl.envs import check_env_specs

done, masked = rollout["next", "done"][..., 0], rollout["mask"].sum(-1)
assert rollout.shape == (4, 20) and done.sum() >= 4
assert (rollout["next", "mask"].sum(-1)[done] == 0).all()  # the true last state, not that of a restart
assert (masked[:, 1:][done[:, :-1]] == 16).all()  # and what follows is a fresh canvas
assert (rollout["next", "reward"][..., 0][~done] == 0).all()
check_env_specs(env)
check_env_specs(GymWrapper(gym.make("DLLMUnmask-v0", task="sudoku")))
print("as it should be")
"""


@needs_torchrl
def test_torchrl_steps_single_and_batched_environments(tmp_path):
    assert "as it should be" in run_alone(tmp_path, "-c", snippets("TorchRL") + TORCHRL_CHECK)


# rl_zoo3 ----------------------------------------------------------------------------------------------------

ZOOS_OWN = {
    "n_timesteps",
    "n_envs",
    "env_kwargs",
}  # what rl_zoo3 itself takes; the rest goes to the algorithm


def test_rl_zoo3_file_says_what_ppo_and_the_environment_understand():
    """Without rl_zoo3: its format, read by hand, makes an agent that learns."""
    (name, settings), *others = yaml.safe_load(ZOO_FILE.read_text()).items()
    assert not others
    assert name in gym.registry
    module, _, policy = settings.pop("policy").rpartition(".")
    assert getattr(importlib.import_module(module), policy) is UnmaskPolicy
    schedule, _, rate = settings.pop("learning_rate").partition("_")
    assert schedule == "lin"
    env = make_sb3_env(4, **settings["env_kwargs"])
    arguments = {key: value for key, value in settings.items() if key not in ZOOS_OWN}
    PPO(UnmaskPolicy, env, learning_rate=float(rate), **arguments | {"batch_size": 32}).learn(128)


@needs_rl_zoo3
@pytest.mark.parametrize("batched", [False, True])
def test_rl_zoo3_trains_and_its_policy_evaluates(batched, tmp_path):
    script = [ROOT / "examples" / "rl_zoo3_train.py"] if batched else ["-m", "rl_zoo3.train"]
    arguments = "--algo ppo --env DLLMUnmask-v0 --gym-packages dllm_gym --seed 0 --num-threads 1 -n 64"
    overrides = ["-params", "n_envs:4", "n_steps:16", "batch_size:32"]
    evaluation = ["--eval-freq", 32, "--eval-env-kwargs", "task:'sudoku'", "split:'validation'"]
    run_alone(tmp_path, *script, *arguments.split(), "--conf-file", ZOO_FILE, *overrides, *evaluation)
    assert (tmp_path / "logs" / "ppo" / "DLLMUnmask-v0_1" / "evaluations.npz").is_file()
    model = PPO.load(tmp_path / "logs" / "ppo" / "DLLMUnmask-v0_1" / "DLLMUnmask-v0.zip")
    assert (model.num_timesteps, model.n_envs, model.gamma) == (64, 4, 1.0)
    run_alone(tmp_path, "-c", snippets("rl_zoo3"))
    assert dllm_gym.evaluate(str(tmp_path / "runs" / "zoo"), 8, task="sudoku").episodes == 8
