"""GRPO against the paper read literally, as an algorithm of Stable-Baselines3, and steered by experts."""

from __future__ import annotations

import math
import zipfile
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor
from toy_unmask import ToyUnmaskVectorEnv

import dllm_gym
from dllm_agents.agent import LearnedPolicy
from dllm_agents.sb3 import GymVecEnv, UnmaskPolicy
from dllm_agents.sb3.callbacks import RolloutMetrics
from dllm_agents.sb3.env import make_sb3_env
from dllm_agents.sb3.grouped import GroupPPO
from dllm_agents.sb3.grpo import GRPO, steered_log_prob
from dllm_agents.sb3.updates import clipped_surrogate
from dllm_gym.strategies import InBlocks, make_strategy

pytestmark = pytest.mark.usefixtures("toys")

LENGTH = 6
TOY = {"task": "toy", "backend": "toy"}
ENDLESS = {**TOY, "task_kwargs": {"num_problems": None}}  # so that a problem belongs to one group
ALWAYS_RIGHT = {"task": "toy", "backend": "always-right"}
EXPERT = "fast-dllm:threshold=0.7"
everything = 10**6  # as batch size: all samples at once
quick = settings(deadline=None, max_examples=50)


def make_model(env: Any = None, policy: Any = None, **kwargs: Any) -> Any:
    env = make_sb3_env(16, group_size=4, **TOY) if env is None else env
    policy = {"width": 16, "critic": False, **(policy or {})}
    fixed = {"n_steps": 8, "batch_size": 64, "device": "cpu", "seed": 0}
    return GRPO(UnmaskPolicy, env, policy_kwargs=policy, **{**fixed, **kwargs})


def weights_of(model: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


class Spy(BaseCallback):
    """Looks at the model at the end of every rollout."""

    def __init__(self, look: Any = lambda model: None) -> None:
        super().__init__()
        self.look = look

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.look(self.model)


# The formulas -----------------------------------------------------------------------------------------------


@quick
@given(ratio=st.floats(0.01, 10), advantage=st.floats(-3, 3), clip_range=st.floats(0.05, 0.9))
def test_clipped_surrogate(ratio, advantage, clip_range):
    clipped = max(1 - clip_range, min(1 + clip_range, ratio))
    found = clipped_surrogate(torch.tensor([ratio]), torch.tensor([advantage]), clip_range)
    assert found.item() == pytest.approx(min(ratio * advantage, clipped * advantage), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [(1.5, 1.0, 0.0), (0.5, -1.0, 0.0), (1.5, -1.0, -1.0), (0.5, 1.0, 1.0), (1.0, 2.0, 2.0)],
)
def test_what_is_clipped_has_no_gradient(ratio, advantage, slope):
    tensor = torch.tensor([ratio], requires_grad=True)
    clipped_surrogate(tensor, torch.tensor([advantage]), 0.2).sum().backward()
    assert tensor.grad.item() == pytest.approx(slope)


@quick
@given(st.lists(st.tuples(st.floats(-60, 0), st.booleans()), min_size=1, max_size=6), st.integers(1, 16))
def test_steered_log_prob(rows, group):
    """paper.md, section 8, with one expert."""
    log_prob = torch.tensor([value for value, _ in rows])
    expert = torch.tensor([is_expert for _, is_expert in rows])
    found = steered_log_prob(log_prob, expert, group / (group + 1))
    for value, (plain, is_expert) in zip(found.tolist(), rows, strict=True):
        expected = plain
        if is_expert:
            expected = np.logaddexp(math.log(group / (group + 1)) + plain, math.log(1 / (group + 1)))
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-5)


@quick
@given(st.floats(-1e5, 0), st.floats(-1e5, 0), st.integers(1, 8), st.integers(1, 3))
def test_the_mixture_bounds_the_ratio(new, old, group, experts):
    log_prob = torch.tensor([new, old], requires_grad=True)
    steered = steered_log_prob(log_prob, torch.tensor([True, True]), group / (group + experts))
    ratio = (steered[0] - steered[1]).exp()
    ratio.backward()
    assert ratio.item() <= (group + experts) / experts * 1.001
    assert torch.isfinite(log_prob.grad).all()


@quick
@given(st.floats(-20, 0), st.integers(1, 16), st.integers(1, 3))
def test_an_expert_step_pulls_by_the_policys_share_in_it(plain, group, experts):
    log_prob = torch.tensor([plain], requires_grad=True)
    steered_log_prob(log_prob, torch.tensor([True]), group / (group + experts)).sum().backward()
    share = group * math.exp(plain) / (group * math.exp(plain) + experts)
    assert log_prob.grad.item() == pytest.approx(share, rel=1e-3)


def test_without_experts_nothing_is_steered():
    log_prob = torch.tensor([-3.0, -1e4], requires_grad=True)
    steered = steered_log_prob(log_prob, torch.tensor([False, False]), 1.0)
    assert torch.equal(steered, log_prob)
    steered.sum().backward()
    assert log_prob.grad.tolist() == [1.0, 1.0]


# The loss ---------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    observation: dict[str, np.ndarray]
    action: np.ndarray
    log_prob: float


class Played(NamedTuple):
    """An episode."""

    steps: list[Step]
    reward: float
    expert: bool


class Recorder(Spy):
    """Follows every row on its own and knows groups by the problem the environment says it was."""

    def __init__(self, look: Any) -> None:
        super().__init__(look)
        self.running: dict[int, list[Step]] = defaultdict(list)
        self.groups: dict[int, list[Played]] = defaultdict(list)

    def _on_step(self) -> bool:
        observation, arrays = self.locals["observation"], self.locals["arrays"]
        for row in range(self.training_env.num_envs):
            own = {key: value[row] for key, value in observation.items()}
            self.running[row].append(Step(own, arrays["actions"][row], float(arrays["log_probs"][row])))
            if self.locals["dones"][row]:
                played = Played(
                    self.running.pop(row),
                    float(self.locals["rewards"][row]),
                    bool(self.locals["expert_rows"][row]),
                )
                self.groups[self.locals["infos"][row]["problem"]].append(played)
        return True


def slow_facts(policy: Any, step: Step) -> tuple[float, float]:
    """Log-probability and entropy of a step, bit by bit."""
    with torch.no_grad():
        logits = policy.network({key: torch.as_tensor(v)[None] for key, v in step.observation.items()})[0]
    log_prob = entropy = 0.0
    for b, candidate, bit in zip(logits.tolist(), step.observation["action_mask"], step.action, strict=True):
        if candidate:
            p = 1 / (1 + math.exp(-b))
            log_prob += math.log(p if bit else 1 - p)
            entropy -= p * math.log(p) + (1 - p) * math.log(1 - p)
    return log_prob, entropy


def slow_loss(model: Any, reference: Any, groups: list[list[Played]], experts: int) -> float:
    """Sections 7 and 8 of paper.md, one step after the other."""
    total, count = [], 0
    for group in groups:
        mean = sum(played.reward for played in group) / len(group)
        if not (model.kl_coef or model.ent_coef) and all(played.reward == mean for played in group):
            continue  # nothing to learn
        for played in group:
            terms = []
            for step in played.steps:
                plain, entropy = slow_facts(model.policy, step)
                new, old = plain, step.log_prob
                if played.expert:
                    share = (len(group) - experts) / len(group)
                    new, old = (np.logaddexp(math.log(share) + x, math.log(1 - share)) for x in (new, old))
                ratio, advantage = math.exp(new - old), played.reward - mean
                clipped = max(1 - model.clip_range, min(1 + model.clip_range, ratio))
                term = -min(ratio * advantage, clipped * advantage) - model.ent_coef * entropy
                if model.kl_coef:
                    difference = slow_facts(reference, step)[0] - plain
                    term += model.kl_coef * (math.exp(difference) - difference - 1)
                terms.append(term)
            total.append(sum(terms) / (len(terms) if model.loss_average == "sequence" else 1))
            count += 1 if model.loss_average == "sequence" else len(terms)
    return sum(total) / count


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"loss_average": "step"},
        {"expert": EXPERT},
        {"expert": EXPERT, "loss_average": "step", "clip_range": 0.05},
        {"kl_coef": 0.3},
        {"ent_coef": 0.1, "kl_coef": 0.2, "expert": EXPERT},
    ],
    ids=str,
)
def test_loss_is_that_of_the_paper(kwargs):
    """After a change of the weights, so that ratios are not 1; over all samples, in minibatches."""
    experts = 1 if "expert" in kwargs else 0
    env = make_sb3_env(12, group_size=3, num_experts=experts, observe=("margin",), **ENDLESS)
    policy = {"initial_bias": -1.0, "features": ("confidence", "margin", "mask", "progress")}
    model = make_model(env, policy, n_steps=24, **{"clip_range": 0.2, **kwargs})
    found: dict[str, Any] = {}

    def look(model: Any) -> None:
        with torch.no_grad():
            for parameter in model.policy.parameters():
                parameter += 0.15 * torch.randn_like(parameter)
        share = 1 - experts / (3 + experts)
        samples = len(model.rollout_buffer.returns)
        for size in (everything, 17):
            losses = [
                (len(batch.returns), model._loss(batch, model.clip_range, share))
                for batch in model.rollout_buffer.get(size)
            ]
            found[str(size)] = sum(n / samples * loss.item() for n, (loss, _) in losses)
            found["clipped"] = losses[0][1][1]["clip_fraction"].item()
        complete = [group for group in recorder.groups.values() if len(group) == 3 + experts]
        assert sum(played.expert for group in complete for played in group) == experts * len(complete)
        assert len(complete) > 4
        found["expected"] = slow_loss(model, model._reference, complete, experts)

    recorder = Recorder(look)
    model.learn(1, recorder)
    assert 0 < found["clipped"] < 1
    assert abs(found["expected"]) > 1e-3
    assert found[str(everything)] == pytest.approx(found["expected"], rel=1e-4, abs=1e-6)
    assert found["17"] == pytest.approx(found["expected"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("sampler", ["bernoulli", "dpls"])
def test_the_first_ratio_is_one(sampler):
    model = make_model(policy={"sampler": sampler}, n_steps=16, n_epochs=1, batch_size=everything)
    model.learn(1)
    metrics = model.logger.name_to_value
    assert metrics["train/clip_fraction"] == 0
    assert metrics["train/approx_kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["train/policy_gradient_loss"] != 0


def test_the_reference_is_the_policy_training_began_with():
    model = make_model(kl_coef=0.1, n_epochs=1, batch_size=everything, learning_rate=1e-2)
    before = weights_of(model)
    divergences = []
    train = model.train

    def watched() -> None:
        train()
        divergences.append(model.logger.name_to_value["train/reference_kl"])

    model.train = watched
    model.learn(400)
    model.learn(200, reset_num_timesteps=False)
    assert divergences[0] == pytest.approx(0, abs=1e-6)
    assert min(divergences[1:]) > 1e-5
    reference = torch.cat([parameter.flatten() for parameter in model._reference.parameters()])
    assert torch.equal(reference, before)


def test_divergence_holds_the_policy_back():
    distances = []
    for kl_coef in (0.0, 10.0):
        env = make_sb3_env(16, group_size=4, **ALWAYS_RIGHT)
        model = make_model(env, kl_coef=kl_coef, learning_rate=1e-2)
        model.learn(800)
        distances.append(dllm_gym.evaluate(LearnedPolicy(model.policy.network), 40, **ALWAYS_RIGHT).nfe_mean)
    assert distances[0] < distances[1] - 1


def test_without_variance_nothing_changes():
    """alpha = 0 and always right: all groups are flat and left out."""
    model = make_model(make_sb3_env(8, group_size=4, alpha=0.0, **ALWAYS_RIGHT))
    before, seen = weights_of(model), []
    look = Spy(
        lambda model: seen.append((len(model.rollout_buffer.returns), model.rollout_buffer.zero_variance))
    )
    model.learn(200, look)
    assert len(seen) > 1
    assert set(seen) == {(0, 1.0)}
    assert torch.equal(weights_of(model), before)


# As an algorithm of Stable-Baselines3 -----------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["bernoulli", "dpls"])
def test_learns_that_steps_cost(sampler):
    env = make_sb3_env(16, group_size=4, **ALWAYS_RIGHT)
    model = make_model(env, {"sampler": sampler}, learning_rate=1e-2)
    decoding = "dpls" if sampler == "dpls" else "sample"

    def nfe() -> float:
        agent = LearnedPolicy(model.policy.network.eval(), decoding=decoding)
        return dllm_gym.evaluate(agent, 50, **ALWAYS_RIGHT).nfe_mean

    before = nfe()
    model.learn(3000)
    assert before > 3.5
    assert nfe() < 2


def test_same_seed_same_weights():
    weights = []
    for seed in (0, 0, 1):
        env = make_sb3_env(16, group_size=4, num_experts=1, seed=3, **TOY)
        model = make_model(env, seed=seed, expert=EXPERT)
        model.learn(300)
        weights.append(weights_of(model))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("policy", [{}, {"sampler": "dpls"}, {"critic": True}], ids=str)
def test_save_load_and_go_on(tmp_path, policy):
    model = make_model(policy=policy, learning_rate=1e-2)
    model.learn(400)
    model.save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert sum(entry.file_size for entry in archive.infolist()) < 200_000
    loaded = GRPO.load(tmp_path / "model.zip", env=make_sb3_env(16, group_size=4, **TOY), device="cpu")
    to_predict = GRPO.load(tmp_path / "model.zip", device="cpu")
    rebuilt = make_model(policy=policy, seed=1)
    rebuilt.set_parameters(tmp_path / "model.zip", device="cpu")
    expected = dllm_gym.evaluate(model, 20, **TOY).to_json()
    for other in (loaded, to_predict, rebuilt):
        assert dllm_gym.evaluate(other, 20, **TOY).to_json() == expected
    loaded.learn(200, reset_num_timesteps=False)
    assert loaded.num_timesteps >= model.num_timesteps + 200
    assert loaded.clip_range == model.clip_range


def test_save_and_load_with_an_expert(tmp_path):
    def env() -> Any:
        return make_sb3_env(8, group_size=3, num_experts=1, **TOY)

    model = make_model(env(), expert=EXPERT, expert_block_length=2, kl_coef=0.1)
    model.learn(100)
    model.save(tmp_path / "model.zip")
    loaded = GRPO.load(tmp_path / "model.zip", env=env(), device="cpu")
    assert (loaded.expert, loaded.expert_block_length) == (EXPERT, 2)
    loaded.learn(100, reset_num_timesteps=False)
    assert torch.isfinite(weights_of(loaded)).all()


@pytest.mark.parametrize("sampler", ["bernoulli", "dpls"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_predicts_bits(sampler, deterministic):
    model = make_model(policy={"sampler": sampler, "initial_bias": 1.0})
    env = make_sb3_env(20, **TOY)
    actions, _ = model.predict(env.reset(), deterministic=deterministic)
    assert actions.dtype == np.int8
    assert set(np.unique(actions)) <= {0, 1}
    assert actions.any(axis=1).all() or (sampler == "bernoulli" and not deterministic)
    rewards, lengths = evaluate_policy(
        model, make_sb3_env(4, **TOY), 8, deterministic=deterministic, return_episode_rewards=True
    )
    assert all(0 <= reward <= 1 for reward in rewards)
    assert all(1 <= length <= LENGTH for length in lengths)


def test_callbacks(tmp_path):
    evaluation = EvalCallback(
        make_sb3_env(4, split="validation", **TOY),
        n_eval_episodes=5,
        eval_freq=8,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        verbose=0,
    )
    rollouts = []
    model = make_model(policy={"sampler": "dpls"})
    model.learn(256, [evaluation, Spy(lambda model: rollouts.append(model.num_timesteps))])
    assert rollouts == [128, 256]
    assert np.load(tmp_path / "evaluations.npz")["results"].shape == (2, 5)
    assert isinstance(GRPO.load(tmp_path / "best_model.zip", device="cpu").policy, UnmaskPolicy)


def test_statistics_that_are_logged():
    model = make_model(policy={"initial_bias": -1.0}, kl_coef=0.1, ent_coef=0.01)
    model.learn(128)
    logged = model.logger.name_to_value
    assert {
        "train/loss", "train/policy_gradient_loss", "train/clip_fraction", "train/approx_kl", "train/entropy",
        "train/reference_kl", "train/clip_range", "train/learning_rate", "train/n_updates",
    } <= set(logged)  # fmt: skip
    assert all(math.isfinite(value) for value in logged.values())
    assert len(model.ep_info_buffer) > 10


def test_clip_range_may_be_a_schedule():
    model = make_model(clip_range=lambda remaining: 0.1 + remaining)
    model.learn(128)
    assert model.logger.name_to_value["train/clip_range"] == pytest.approx(0.1)


# Experts ----------------------------------------------------------------------------------------------------

KNOBS = ("alpha", "target_steps", "block_length")
RANGES = {"alpha": (0.2, 5.0), "target_steps": (1, 4), "block_length": (2, 4, 6), "observe": KNOBS}


@pytest.mark.parametrize(("group_size", "num_experts", "rows"), [(3, 1, 8), (4, 2, 6), (5, 1, 7)])
def test_so_many_of_each_group_are_the_experts_in_the_same_circumstances(group_size, num_experts, rows):
    env = make_sb3_env(rows, group_size=group_size, num_experts=num_experts, **{**ENDLESS, **RANGES})
    model = make_model(env, expert=EXPERT, expert_block_length=4)
    rule = InBlocks(make_strategy("fast-dllm", threshold=0.7), 4)
    seen: list[int] = []

    def look(model: Any) -> None:
        complete = [group for group in recorder.groups.values() if len(group) == group_size + num_experts]
        seen.append(len(complete))
        for group in complete:
            assert sum(played.expert for played in group) == num_experts
            for knob in KNOBS:
                assert (
                    len({float(step.observation[knob][0]) for played in group for step in played.steps}) == 1
                )
            for played in group:
                if played.expert:
                    for step in played.steps:
                        assert np.array_equal(step.action, rule.act(step.observation))
        alphas = {float(group[0].steps[0].observation["alpha"][0]) for group in complete}
        assert len(alphas) == len(complete)
        assert all(0.2 <= alpha <= 5 for alpha in alphas)

    recorder = Recorder(look)
    model.learn(400, recorder)
    assert seen[-1] > 10


def test_likelihood_of_an_expert_counts_what_its_blocks_hide():
    """It decides, too, not to reveal later blocks yet: the policy is asked about all candidates."""
    env = make_sb3_env(8, group_size=3, num_experts=1, **ENDLESS)
    model = make_model(env, expert="confidence:k=1", expert_block_length=2)

    def look(model: Any) -> None:
        experts = [played for group in recorder.groups.values() for played in group if played.expert]
        for played in experts:
            assert played.steps[0].observation["action_mask"].sum() == LENGTH
            for step in played.steps:
                assert step.log_prob == pytest.approx(slow_facts(model.policy, step)[0], abs=1e-4)
        counts.append(len(experts))

    counts: list[int] = []
    recorder = Recorder(look)
    model.learn(1, recorder)
    assert counts[0] > 1


def test_experts_are_in_no_statistic():
    """The expert takes 1 step, the policy 6."""
    env = make_sb3_env(8, group_size=3, num_experts=1, **ALWAYS_RIGHT)
    model = make_model(env, {"initial_bias": -12.0}, expert="fast-dllm:threshold=0", learning_rate=0.0)
    logged: dict[str, float] = {}
    lengths: list[int] = []

    class Witness(Spy):
        def _on_step(self) -> bool:
            lengths.extend(self.locals["infos"][row]["nfe"] for row in np.flatnonzero(self.locals["dones"]))
            return True

    model.learn(200, [RolloutMetrics(), Witness(lambda model: logged.update(model.logger.name_to_value))])
    assert set(lengths) == {1, LENGTH}
    assert logged["unmask/nfe"] == LENGTH
    assert logged["unmask/tokens_per_step"] == 1
    assert {episode["l"] for episode in model.ep_info_buffer} == {LENGTH}


def test_an_expert_makes_a_difference_where_there_was_none():
    """Alone the policy always takes 6 steps, sees no difference and learns nothing."""
    shares, changed = [], []
    for num_experts in (0, 1):
        env = make_sb3_env(16, group_size=4, num_experts=num_experts, **ALWAYS_RIGHT)
        expert = "fast-dllm:threshold=0" if num_experts else None
        model = make_model(env, {"initial_bias": -12.0}, expert=expert)
        before = weights_of(model)
        model.learn(128, Spy(lambda model: shares.append(model.rollout_buffer.zero_variance)))
        changed.append(not torch.equal(weights_of(model), before))
    assert shares == [1.0, 0.0]
    assert changed == [False, True]


# Refusals ---------------------------------------------------------------------------------------------------


def test_needs_groups():
    for env in (make_sb3_env(16, **TOY), VecMonitor(GymVecEnv(ToyUnmaskVectorEnv(num_envs=16)))):
        with pytest.raises(ValueError, match=r"GRPO needs an environment made by make_sb3_env\(group_size=8"):
            make_model(env)


def test_an_expert_needs_its_episodes_and_they_need_an_expert(tmp_path):
    with_experts = make_sb3_env(8, group_size=3, num_experts=1, **TOY)
    with pytest.raises(ValueError, match=r"expert 'random' and .* num_experts=0 do not go together"):
        make_model(expert="random")
    with pytest.raises(ValueError, match=r"expert None and .* num_experts=1 do not go together"):
        make_model(with_experts)
    with pytest.raises(ValueError, match=r"expert None and .* num_experts=1 do not go together"):
        GroupPPO(UnmaskPolicy, with_experts, n_steps=8, batch_size=32, device="cpu")
    model = make_model(make_sb3_env(8, group_size=4, **TOY))
    model.set_env(with_experts)
    with pytest.raises(ValueError, match=r"expert None and .* num_experts=1 do not go together"):
        model.learn(10)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"expert": "nobody"}, "'nobody' is neither a strategy"),
        ({"expert": EXPERT, "expert_block_length": 0}, "block_length must be an integer >= 1, got 0"),
        ({"expert": EXPERT, "policy": {"sampler": "dpls"}}, "an expert needs sampler 'bernoulli'"),
    ],
)
def test_wrong_experts(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_model(make_sb3_env(8, group_size=3, num_experts=1, **TOY), **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"loss_average": "token"}, "unknown loss_average 'token'; choose one of sequence, step"),
        ({"baseline": "best"}, "unknown baseline 'best'; choose one of mean, leave-one-out"),
        ({"scale": "huge"}, "unknown scale 'huge'; choose one of none, group, batch"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"learn_from": 0}, "learn_from must be a whole number of at least 1, got 0"),
        ({"n_epochs": 0}, "n_epochs must be a whole number of at least 1, got 0"),
        ({"learn_from": "four"}, "learn_from must be a whole number of at least 1, got 'four'"),
        ({"n_steps": 2.5}, "n_steps must be a whole number of at least 1, got 2.5"),
        ({"kl_coef": -0.1}, "kl_coef must be a finite number of at least 0, got -0.1"),
        ({"kl_coef": "little"}, "kl_coef must be a finite number of at least 0, got 'little'"),
        ({"policy": {"sampler": "beam"}}, "unknown sampler 'beam'; choose one of bernoulli, bits, dpls"),
    ],
)
def test_values_out_of_range(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_model(**kwargs)


def test_half_of_every_group_is_learned_from():
    lengths: dict[int | None, list[int]] = {}
    for learn_from in (None, 2):
        env = make_sb3_env(16, group_size=4, **ENDLESS)
        own = lengths[learn_from] = []
        model = make_model(env, learn_from=learn_from)
        before = weights_of(model)
        model.learn(128, Spy(lambda model, own=own: own.append(len(model.rollout_buffer.returns))))
        assert not torch.equal(before, weights_of(model))
    assert 0 < lengths[2][0] < lengths[None][0]  # the first rollout is the same but for what is left out
