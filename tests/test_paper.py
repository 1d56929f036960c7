"""The paper's experiment: its configurations hold its numbers, and every one runs on tiny checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dllm_agents import load_policy, train
from dllm_agents.config import find_config, load_config
from dllm_agents.schedules import Pace, learning_rate
from dllm_gym.backends.families import family_named
from dllm_gym.backends.word_tokenizer import save_tokenizer

NAMES = ("llada-bl32", "llada-bl256", "llada-bl256-expert", "dream-bl32", "dream-bl256")
BACKENDS = {"llada": "GSAI-ML/LLaDA-8B-Instruct", "dream": "Dream-org/Dream-v0-Instruct-7B"}


def shipped(name: str) -> Any:
    return load_config(find_config(f"paper/{name}"))


def test_these_are_the_configurations():
    folder = find_config("paper/llada-bl32").parent
    assert {path.stem for path in folder.glob("*.yaml")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_are_the_papers(name):
    """arXiv 2512.09106 and its released code: sections 2, 4, 7 and 8 of our notes on them."""
    config, steered = shipped(name), name.endswith("expert")
    env, kwargs, policy = config.env, config.algorithm_kwargs, config.policy
    assert env["backend"] == BACKENDS[name.split("-")[0]]
    assert [member["task"] for member in env["task_kwargs"]["tasks"]] == ["gsm8k", "math500"]
    assert (env["completion_length"], env["block_length"]) == (256, 32 if "bl32" in name else 256)
    assert (env["on_empty"], env.get("temperature", 0.0), env.get("reward")) == ("noop", 0.0, None)
    assert (config.group_size, kwargs["groups_per_rollout"] * config.group_size) == (8, 128)
    assert kwargs["total_rounds"] == (7473 + 7500) * 8 // 128 + 1
    assert (kwargs["n_epochs"], kwargs["batch_size"], kwargs.get("kl_coef", 0.0)) == (2, None, 0.0)
    assert (kwargs["baseline"], kwargs["scale"], kwargs["loss_average"]) == ("mean", "none", "sequence")
    assert (kwargs["clip_range"], kwargs["max_grad_norm"]) == (0.2 if steered else 0.5, 0.2)
    assert (config.learning_rate, config.final_learning_rate, config.decay) == (3e-5, 0.0, "cosine")
    assert config.warmup * kwargs["total_rounds"] * kwargs["n_epochs"] == pytest.approx(100, abs=1)
    assert policy["optimizer_class"] == "AdamW"
    assert policy["optimizer_kwargs"] == {"betas": [0.9, 0.99], "weight_decay": 0.1}
    assert (policy["width"], policy["heads"], policy["layers"]) == (128, 2, 1)
    assert policy["features"] == ["confidence", "mask", "progress"]
    assert config.seed == 123
    assert config.total_timesteps >= kwargs["total_rounds"] * 16 * (8 + config.num_experts) * 256
    expert = ("fast-dllm:threshold=0.9", 1, 32) if steered else (None, 0, None)
    assert (config.expert, config.num_experts, config.expert_block_length) == expert


def test_the_learning_rate_rises_and_falls_like_a_cosine():
    rate = learning_rate(shipped("llada-bl32"), Pace(None, lambda: 0.0))
    assert rate(1.0) == 0.0
    assert rate(1 - 0.0267) == pytest.approx(1.5e-5)
    assert rate(1 - 0.0534) == pytest.approx(3e-5)
    assert rate((1 - 0.0534) / 2) == pytest.approx(1.5e-5)
    assert rate((1 - 0.0534) / 4) == pytest.approx(3e-5 * (1 - 0.5**0.5) / 2)
    assert rate(0.0) == rate(-0.3) == pytest.approx(0.0)


# A dry run -------------------------------------------------------------------------------------------------


def write_tiny_checkpoint(directory: Path, layout: str) -> Path:
    """Random weights in a publisher's layout, and a tokenizer that reads any text: bytes."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    family: Any = family_named(layout)
    special = family.special_tokens
    names = [special.bos, special.eos, special.eot, special.mask]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE({token: i for i, token in enumerate([*names, *alphabet])}, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytewise, bos_token=special.bos, eos_token=special.eos, pad_token=special.eos,
        additional_special_tokens=[special.eot, special.mask], padding_side="left",
    )  # fmt: skip
    tokenizer.chat_template = "{{ messages[0]['content'] }}" + special.eot
    config = family.write_config(
        vocab_size=len(tokenizer), width=16, layers=1, heads=2, kv_heads=1, mlp_width=32, rope_theta=1e4,
        max_length=2048, mask_token_id=3, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, family.model_class)(family.translate(config))
    directory.mkdir()
    tensors = {name: t.contiguous() for name, t in family.checkpoint_names(model.state_dict()).items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_tokenizer(tokenizer, directory)
    return directory


def write_problems(folder: Path) -> dict[str, str]:
    """Training problems of both tasks in their publishers' columns; the path of each."""
    gsm8k = [
        {"question": f"What is {i} + {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(200)
    ]
    math = [{"problem": f"Find ${i}^2$.", "solution": f"$\\boxed{{{i * i}}}$"} for i in range(200)]
    paths = {"gsm8k": folder / "gsm8k_train.jsonl", "math500": folder / "math_train.jsonl"}
    for path, rows in zip(paths.values(), (gsm8k, math), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {name: str(path) for name, path in paths.items()}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {layout: write_tiny_checkpoint(folder / layout, layout) for layout in BACKENDS}


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_goes_through_every_line(tmp_path, monkeypatch, checkpoints, name):
    """With another checkpoint, data in a file, 8 tokens for 256, 2 groups for 16 and 2 rounds for 936."""
    monkeypatch.setattr("dllm_agents.sb3.callbacks.evaluation_figures", lambda *_: {})
    config, paths = shipped(name), write_problems(tmp_path)
    members = [{**member, "data": paths[member["task"]]} for member in config.env["task_kwargs"]["tasks"]]
    short = {
        "backend": str(checkpoints[name.split("-")[0]]),
        "task_kwargs": {"tasks": members},
        "completion_length": 8,
        "block_length": config.env["block_length"] // 32,
    }
    sizes = {"groups_per_rollout": 2, "total_rounds": 2, "micro_batch_size": 64}
    config = config.updated(
        env={**config.env, **short},
        num_envs=18,
        eval_episodes=2,
        algorithm_kwargs={**config.algorithm_kwargs, **sizes},
        expert_block_length=config.expert_block_length and 4,
    )
    directory = train(config, tmp_path / "run")
    (row,) = json.loads((directory / "metrics.json").read_text())["evaluations"]
    assert 2 * 2 * (8 + config.num_experts) <= row["timesteps"] < 1000
    saved = load_policy(directory / "best").network
    assert sum(p.numel() for p in saved.parameters()) == 331_265  # the paper's network
    state = torch.load(directory / "training_state.pt", weights_only=True)
    assert state["updates"] == 4
    settings = state["optimizer"]["param_groups"][0]
    assert (tuple(settings["betas"]), settings["weight_decay"]) == ((0.9, 0.99), 0.1)
