"""The policy network: sizes, the paper's formulas, and what its output may depend on."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dllm_agents.distributions import masked_logits
from dllm_agents.networks import (
    FEW_POSITIONS,
    PAIR_FEATURES,
    POSITION_FEATURES,
    TimeEmbedding,
    UnmaskTransformer,
    UnmaskTransformerConfig,
    attend,
    rotary_angles,
    token_codes,
    turn,
)
from dllm_gym.envs.observations import SETTINGS

PAPER_FEATURES = ("confidence", "mask", "progress")


def make_observation(batch: int = 3, length: int = 10, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, length, generator=generator) < 0.6
    confidence = torch.where(mask, torch.rand(batch, length, generator=generator), 1.0)
    action_mask = mask & (torch.arange(length) < length // 2 + 1)
    return {
        "confidence": confidence,
        "mask": mask.to(torch.int8),
        "action_mask": action_mask.to(torch.int8),
        "progress": torch.rand(batch, 1, generator=generator),
        "top_k": torch.rand(batch, length, 5, generator=generator).sort(-1, descending=True).values,
        "hidden": torch.randn(batch, length, 6, generator=generator),
        "attention": torch.rand(batch, length, length, generator=generator) / length,
        "predicted": torch.randint(4, (batch, length), generator=generator),
        "alpha": 3 * torch.rand(batch, 1, generator=generator),
        "target_steps": 1 + 9 * torch.rand(batch, 1, generator=generator),
        "block_length": torch.randint(1, length + 1, (batch, 1), generator=generator).float(),
    }


EVERY_FEATURE = {
    "features": (
        *UnmaskTransformerConfig().features,
        "top_k",
        "hidden",
        *PAIR_FEATURES,
        *SETTINGS,
        "position",
    ),
    "top_k": 5,
    "hidden_width": 6,
}


def make_network(seed: int = 0, **fields: object) -> UnmaskTransformer:
    """A small network with every weight random, so that no branch is switched off by its initialisation."""
    torch.manual_seed(seed)
    network = UnmaskTransformer(UnmaskTransformerConfig(**{"width": 16, **fields}))  # type: ignore[arg-type]
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def test_parameter_count_of_the_paper():
    config = UnmaskTransformerConfig(features=PAPER_FEATURES, width=128, value_head=False)
    assert UnmaskTransformer(config).num_parameters == 331_265


def test_matches_the_papers_formulas_written_out():
    """Condition per position, one projection per gate, rotary embedding on real interleaved pairs."""
    network = make_network(features=PAPER_FEATURES, heads=2)
    observation = make_observation()
    block, width, heads = network.blocks[0], 16, 2
    batch, length = observation["mask"].shape

    def rotate(vectors: Tensor) -> Tensor:  # (B, L, H, d)
        rotated = torch.empty_like(vectors)
        for position in range(length):
            for pair in range(vectors.shape[-1] // 2):
                angle = torch.tensor(position * 10000.0 ** (-2 * pair / vectors.shape[-1]))
                first, second = vectors[:, position, :, 2 * pair], vectors[:, position, :, 2 * pair + 1]
                rotated[:, position, :, 2 * pair] = first * angle.cos() - second * angle.sin()
                rotated[:, position, :, 2 * pair + 1] = first * angle.sin() + second * angle.cos()
        return rotated

    angles = observation["progress"] * 0.01 ** (-torch.arange(width // 2) / (width // 2))
    time = network.time_embedding.mlp(torch.cat([angles.cos(), angles.sin()], -1))
    condition = network.mask_embedding(observation["mask"].long()) + time[:, None]
    scale1, shift1, gate1, scale2, shift2, gate2 = block.modulation(condition).chunk(6, -1)
    x = network.input_proj(observation["confidence"][..., None])
    y = block.attention_norm(x) * (1 + scale1) + shift1
    q, k, v = block.attention.qkv_proj(y).unflatten(-1, (3, heads, width // heads)).unbind(2)
    scores = torch.einsum("bihd,bjhd->bhij", rotate(q), rotate(k)) / (width // heads) ** 0.5
    y = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).reshape(batch, length, width)
    x = x + (1 + gate1) * block.attention.out_proj(y)
    y = block.mlp_norm(x) * (1 + scale2) + shift2
    x = x + (1 + gate2) * block.mlp[2](F.gelu(block.mlp[0](y)))
    expected = network.output_proj(network.final_norm(x))[..., 0]

    torch.testing.assert_close(network(observation), expected, rtol=1e-4, atol=1e-5)


def test_parameter_count_of_the_papers_other_inputs():
    def count(*features: str, **fields: object) -> int:
        return UnmaskTransformer(UnmaskTransformerConfig(features=features, **fields)).num_parameters  # type: ignore[arg-type]

    assert count("top_k", "mask", "progress", top_k=50) == 331_265 + 49 * 128
    assert count("hidden", "mask", "progress", hidden_width=4096) == 331_265 + 4095 * 128
    assert count("confidence", "progress") == 331_265 - 256
    assert count("confidence", "mask") == 331_265 - 33_024
    assert count("confidence", "mask", "progress", *SETTINGS) == 331_265 + 3 * 33_024


def test_untrained_policy_reveals_few_positions_and_tells_them_apart():
    probabilities = []
    for seed in range(8):
        torch.manual_seed(seed)
        logits = UnmaskTransformer(UnmaskTransformerConfig(width=32))(make_observation(16, 48))
        assert logits.dtype == torch.float32
        assert logits.std(dim=1).min() > 0.01
        probabilities.append(torch.sigmoid(logits).mean().item())
    assert 0.08 < sum(probabilities) / 8 < 0.2
    assert max(probabilities) < 0.4


@pytest.mark.parametrize("length", [1, 7, 48, 130])
def test_runs_at_any_length(length):
    network = make_network(value_head=True)
    logits, values = network.forward_actor_critic(make_observation(2, length))
    assert logits.shape == (2, length)
    assert values.shape == (2,)


def test_rows_are_independent():
    network = make_network(value_head=True)
    observation = make_observation(5)
    logits, values = network.forward_actor_critic(observation)
    for row in range(5):
        alone = {key: value[row : row + 1] for key, value in observation.items()}
        one, value = network.forward_actor_critic(alone)
        torch.testing.assert_close(one[0], logits[row], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(value[0], values[row], rtol=1e-4, atol=1e-5)


def test_rotary_products_depend_on_relative_position_only():
    rotation = rotary_angles(20, 8, torch.device("cpu"))
    q, k = turn(torch.randn(2, 1, 8).expand(2, 20, 8), rotation)  # (L, 8)
    scores = q @ k.T  # (L, L)
    for offset in (-7, -1, 0, 3):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-3, atol=1e-4)
    assert (scores[0, 0] - scores[0, 1]).abs() > 1e-3


def test_order_of_positions_matters():
    network, observation = make_network(), make_observation(1)
    reversed_ = {key: value.flip(1) if value.shape[1] > 1 else value for key, value in observation.items()}
    assert (network(observation) - network(reversed_).flip(1)).abs().max() > 1e-3


@pytest.mark.parametrize(
    "key",
    ["confidence", "mask", "action_mask", "progress", "top_k", "hidden", "attention", "predicted", *SETTINGS],
)
def test_every_feature_counts(key):
    network, observation = make_network(**EVERY_FEATURE), make_observation(2)
    changed = {**observation, key: 1 - observation[key] if "mask" in key else observation[key] // 2}
    if observation[key].is_floating_point():
        changed[key] = observation[key] / 2
    assert key in network.config.requires
    assert (network(observation) - network(changed)).abs().max() > 1e-3


def test_what_the_tokens_are_counts_only_by_which_are_alike():
    network, observation = make_network(**EVERY_FEATURE, pair_width=4), make_observation()
    renamed = {**observation, "predicted": torch.tensor([70, 3, 0, 126_463])[observation["predicted"]]}
    assert torch.equal(network(observation), network(renamed))


def test_codes_tell_all_tokens_of_a_vocabulary_apart():
    codes = token_codes(torch.arange(2**18))  # more than any published dLLM has
    assert codes.shape == (2**18, 16)
    assert len(torch.unique((codes * 1e4).round(), dim=0)) == 2**18
    assert torch.linalg.matrix_rank(codes[:16]) == 16  # a handful can be given any meaning by one layer
    near = (codes[:200, None] - codes[None, :200]).norm(dim=-1) + 9 * torch.eye(200)
    assert near.min() > 0.5  # of 5.7 at most


def test_with_token_among_the_features_it_matters_which_token_would_be_written():
    features = ("confidence", "mask", "token")
    torch.manual_seed(0)
    fresh = UnmaskTransformer(UnmaskTransformerConfig(features=features, width=16))
    assert fresh.config.requires == ("confidence", "mask", "predicted")
    observation = make_observation()
    others = {**observation, "predicted": observation["predicted"] + 1}
    assert torch.equal(fresh(observation), fresh(others))  # it begins without effect
    network = make_network(features=features)
    assert (network(observation) - network(others)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="features must include one of confidence"):
        UnmaskTransformerConfig(features=("token", "mask"))


def test_only_with_position_among_the_features_it_matters_where_a_position_stands():
    """Positions that are all alike are only told apart by where they stand."""
    alike = {
        key: value[:1, :1].expand(1, 12) if value.shape[1] > 1 else value[:1]
        for key, value in make_observation().items()
        if value.ndim == 2
    }
    for features, differs in ((("confidence", "mask"), False), (("confidence", "mask", "position"), True)):
        network = make_network(features=features)
        assert network.config.requires == ("confidence", "mask")
        logits = network(alike)
        assert ((logits - logits[:, :1]).abs().max() > 1e-3) == differs
    torch.manual_seed(0)
    fresh = UnmaskTransformer(UnmaskTransformerConfig(features=("confidence", "position"), width=16))
    assert torch.allclose(fresh(alike), fresh(alike)[:, :1], atol=1e-6)  # it begins without effect


def test_features_can_be_left_out():
    network = make_network(features=("confidence", "mask"))
    observation = make_observation()
    assert network.config.requires == ("confidence", "mask")
    assert network({key: observation[key] for key in ("confidence", "mask")}).shape == (3, 10)


@pytest.mark.parametrize(
    "fields",
    [{}, {"layers": 2}, {"features": ("confidence",)}, {"features": ("confidence", "mask")}, EVERY_FEATURE],
)
def test_candidates_alone_get_the_logits_and_gradients_they_get_among_all(fields):
    network, observation = make_network(**fields), make_observation()
    observation["action_mask"][1] = 0  # a row that is done
    weights = torch.randn(3, 10)
    found = []
    for logits in (
        masked_logits(network(observation), observation["action_mask"]),
        network.candidate_logits(observation),
    ):
        network.zero_grad()
        (logits * weights)[observation["action_mask"] != 0].sum().backward()
        found.append([logits, *(parameter.grad for parameter in network.parameters())])
    for all_of_them, alone in zip(*found, strict=True):
        torch.testing.assert_close(alone, all_of_them, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 48, FEW_POSITIONS, FEW_POSITIONS + 1])
def test_attention_is_that_of_torch_at_every_length(length):
    q, k, v = (torch.randn(3, 2, length, 16, requires_grad=True) for _ in range(3))
    weights = torch.randn(3, 2, length, 16)
    found = []
    for output in (attend(q, k, v), F.scaled_dot_product_attention(q, k, v)):
        found.append([output, *torch.autograd.grad((output * weights).sum(), (q, k, v))])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_without_candidates_there_is_nothing_to_learn():
    network, observation = make_network(), make_observation()
    logits = network.candidate_logits({**observation, "action_mask": torch.zeros(3, 10)})
    assert (logits == -1e8).all()
    logits.sum().backward()
    assert all(not parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize("name", ["entropy", "margin"])
def test_statistics_on_request_are_features(name):
    network, observation = make_network(features=("confidence", name, "mask")), make_observation()
    low, high = torch.zeros(3, 10), torch.ones(3, 10)
    assert name in network.config.requires
    assert (network({**observation, name: low}) - network({**observation, name: high})).abs().max() > 1e-3


@pytest.mark.parametrize("dropped", [("mask",), ("progress",), ("mask", "progress")])
def test_without_mask_or_time_nothing_tells_them(dropped):
    """The paper's ablations: one condition for all positions, for all steps, or none at all."""
    features = tuple(name for name in PAPER_FEATURES if name not in dropped)
    network, observation = make_network(features=features), make_observation()
    assert network.config.requires == features
    logits = network({name: observation[name] for name in features})
    block, batch = network.blocks[0], len(logits)
    condition = torch.zeros(batch, 10, 16)
    if "mask" in features:
        condition = condition + network.mask_embedding(observation["mask"].long())
    if "progress" in features:
        condition = condition + network.time_embedding(observation["progress"])[:, None]
    x = network.input_proj(observation["confidence"][..., None])
    which = torch.arange(batch * 10).view(batch, 10)  # every position has a condition vector of its own
    x = block(x, condition.flatten(0, 1), which, rotary_angles(10, 8, x.device))
    expected = network.output_proj(network.final_norm(x))[..., 0]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_the_value_head_sees_the_mask_in_any_case():
    network, observation = make_network(features=("confidence",), value_head=True), make_observation()
    assert network.config.requires == ("confidence", "mask")
    logits, values = network.forward_actor_critic(observation)
    others, other_values = network.forward_actor_critic({**observation, "mask": 1 - observation["mask"]})
    assert torch.equal(logits, others)
    assert (values - other_values).abs().min() > 1e-4


def test_features_of_many_numbers_are_projected():
    """Each number per position has a weight of its own; ``top_k`` takes the largest of what it is offered."""
    observation = make_observation()
    network = make_network(features=("top_k", "confidence", "hidden"), top_k=3, hidden_width=6)
    inputs = torch.cat([observation["top_k"][..., :3], observation["confidence"][..., None]], -1)
    x = inputs @ network.input_proj.weight.T + network.input_proj.bias
    x = x + observation["hidden"] @ network.hidden_proj.weight.T + network.hidden_proj.bias
    nothing, which = torch.zeros(1, 16), torch.zeros(3, 10, dtype=torch.int64)
    x = network.blocks[0](x, nothing, which, rotary_angles(10, 8, x.device))
    expected = network.output_proj(network.final_norm(x))[..., 0]
    torch.testing.assert_close(network(observation), expected, rtol=1e-4, atol=1e-5)


def test_hidden_states_alone_are_enough():
    network, observation = make_network(features=("hidden",), hidden_width=6), make_observation()
    assert network.config.requires == ("hidden",)
    assert network({"hidden": observation["hidden"]}).shape == (3, 10)


@pytest.mark.parametrize("layers", [1, 2])
def test_pairs_begin_without_effect_and_learn(layers):
    plain, pairs = ("confidence", "mask"), ("confidence", "mask", *PAIR_FEATURES)
    networks = []
    for features in (plain, pairs):
        torch.manual_seed(0)
        networks.append(
            UnmaskTransformer(UnmaskTransformerConfig(features=features, width=16, layers=layers))
        )
    without, network = networks
    observation = make_observation()
    assert network.config.requires == ("confidence", "mask", "attention", "predicted")
    assert torch.equal(network(observation), without(observation))
    assert network.num_parameters == without.num_parameters + layers * 2 * 4
    network(observation).sum().backward()
    assert (network.pair_weights.grad.abs() > 0).all()


@pytest.mark.parametrize("few", [FEW_POSITIONS, 0], ids=["our own attention", "torch's"])
def test_pairs_bias_attention_as_written_out(few, monkeypatch):
    """Scores of position i for j: those without, and log(1 + L a_ij), log(1 + L a_ji) and whether both
    would be the same token, with a weight each."""
    monkeypatch.setattr("dllm_agents.networks.FEW_POSITIONS", few)
    network, observation = make_network(features=("confidence", *PAIR_FEATURES)), make_observation()
    x = observation["confidence"][..., None] @ network.input_proj.weight.T + network.input_proj.bias
    block = network.blocks[0]
    scale1, shift1, gate1, scale2, shift2, gate2 = block.modulation.bias.chunk(6)
    y = block.attention_norm(x) * (1 + scale1) + shift1
    q, k, v = (part.unflatten(-1, (2, 8)) for part in block.attention.qkv_proj(y).chunk(3, dim=-1))
    heads = []
    for head in range(2):
        rotation = rotary_angles(10, 8, x.device)
        scores = turn(q[:, :, head], rotation) @ turn(k[:, :, head], rotation).transpose(1, 2) / 8**0.5
        there, back, *same = network.pair_weights[0, head]
        a = observation["attention"]
        scores = scores + there * torch.log(1 + 10 * a) + back * torch.log(1 + 10 * a.transpose(1, 2))
        tokens = observation["predicted"]
        scores = scores + sum(same) * (tokens[:, :, None] == tokens[:, None]).float()
        heads.append(scores.softmax(-1) @ v[:, :, head])
    x = x + (1 + gate1) * block.attention.out_proj(torch.cat(heads, -1))
    x = x + (1 + gate2) * block.mlp(block.mlp_norm(x) * (1 + scale2) + shift2)
    expected = network.output_proj(network.final_norm(x))[..., 0]
    torch.testing.assert_close(network(observation), expected, rtol=1e-4, atol=1e-5)


def test_observations_of_another_shape_are_refused():
    network, observation = make_network(**EVERY_FEATURE), make_observation()
    with pytest.raises(ValueError, match="holds 4 probabilities per position, this network reads 5"):
        network({**observation, "top_k": observation["top_k"][..., :4]})
    with pytest.raises(ValueError, match="have width 7, this network is made for a dLLM of width 6"):
        network({**observation, "hidden": torch.zeros(3, 10, 7)})


@pytest.mark.parametrize("key", SETTINGS)
def test_settings_are_told_apart_and_alike_ones_are_close(key):
    """From 0 over the largest step price of the paper to more steps than it ever takes."""
    torch.manual_seed(0)
    embedding = make_network(features=("confidence", key)).setting_embeddings[key]
    embedding.mlp = torch.nn.Identity()
    values = torch.linspace(0, 6.2, 200).expm1()[:, None]  # 0 to 492, each 3 % more than the one before
    vectors = embedding(values)
    assert (vectors.norm(dim=-1) - 8**0.5).abs().max() < 1e-3
    distances = torch.cdist(vectors, vectors)
    assert distances.diagonal(1).max() < 0.4
    ratios = (values + 1) / (values.T + 1)
    assert distances[ratios > 1.2].min() > 1.0


def test_log_confidence_gap_counts_nines():
    confidence = torch.tensor([[0.9, 0.99, 0.999, 1.0, 0.0]])
    gap = POSITION_FEATURES["log_confidence_gap"][1]({"confidence": confidence})
    torch.testing.assert_close(gap, torch.tensor([[0.5, 1.0, 1.5, 3.0, 0.0]]), atol=1e-3, rtol=0)


def test_time_embedding_tells_steps_apart():
    def distances(period: float) -> Tensor:
        embedding = TimeEmbedding(32, period)
        embedding.mlp = torch.nn.Identity()  # type: ignore[assignment]
        vectors = embedding(torch.arange(49)[:, None] / 48)
        return torch.cdist(vectors, vectors) + 100 * torch.eye(49)

    assert distances(0.01).min() > 0.9  # any two steps; vectors have norm 4
    assert distances(1.0).min() < 0.1  # the released code's setting
    embedding = TimeEmbedding(32, 0.01)
    early, late = embedding(torch.tensor([[0.1], [0.2]]))
    assert (early - late).norm() > 0.1 * early.norm()


def test_rounded_time():
    """In bfloat16 the 49 steps of an episode are not all told apart; the MLP still computes in float32."""
    torch.manual_seed(0)
    exact, rounded = TimeEmbedding(32, 1.0), TimeEmbedding(32, 1.0, rounded=True)
    rounded.load_state_dict(exact.state_dict())
    progress = torch.arange(49)[:, None] / 48
    expected = torch.cat([progress.cos().expand(49, 16), progress.sin().expand(49, 16)], -1)
    torch.testing.assert_close(exact(progress), exact.mlp(expected))
    torch.testing.assert_close(rounded(progress), exact.mlp(expected.to(torch.bfloat16).to(torch.float32)))
    assert (rounded(progress) - exact(progress)).abs().max() > 1e-4
    config = UnmaskTransformerConfig(features=PAPER_FEATURES, width=16, time_period=1.0, round_time=True)
    assert UnmaskTransformer(config).time_embedding.rounded


def test_masks_of_any_dtype_and_extra_keys():
    network, observation = make_network(), make_observation()
    expected = network(observation)
    for dtype in (torch.bool, torch.int64, torch.float32):
        converted = {key: value.to(dtype) if "mask" in key else value for key, value in observation.items()}
        torch.testing.assert_close(network({**converted, "tokens": torch.zeros(1)}), expected)


def test_nothing_masked_is_finite():
    network = make_network(value_head=True)
    observation = make_observation()
    done = {key: torch.zeros_like(value) for key, value in observation.items()} | {
        "confidence": torch.ones(3, 10)
    }
    logits, values = network.forward_actor_critic(done)
    (logits.sum() + values.sum()).backward()
    assert torch.isfinite(logits).all()
    assert torch.isfinite(values).all()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_training_after_inference_mode():
    network, observation = make_network(), make_observation()
    with torch.inference_mode():
        network(observation)
    network(observation).sum().backward()
    assert network.input_proj.weight.grad.abs().sum() > 0


def test_value_head_is_asked_for():
    with pytest.raises(ValueError, match="value_head=True"):
        make_network().forward_actor_critic(make_observation())


def test_copies_and_pickles():
    network, observation = make_network(), make_observation()
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        torch.testing.assert_close(twin(observation), network(observation))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"features": ("confidence", "mask", "tokens")},
            "unknown features \\['tokens'\\]; known: confidence",
        ),
        (
            {"features": ("mask", "progress", "alpha")},
            "must include one of confidence, .*, top_k, hidden; got",
        ),
        ({"features": ("confidence", "hidden")}, "'hidden' and hidden_width go together, .* None"),
        ({"features": ("confidence",), "hidden_width": 4}, "go together, .* hidden_width 4"),
        ({"features": ("hidden",), "hidden_width": 0}, "hidden_width must be a positive integer, got 0"),
        ({"features": ("top_k",), "top_k": 0}, "top_k must be a positive integer, got 0"),
        ({"features": ("mask", "confidence", "mask")}, "must not repeat"),
        ({"width": 30, "heads": 4}, "width 30 and heads 4"),
        ({"width": 6, "heads": 2}, "multiple of 2 \\* heads"),
        ({"layers": 0}, "layers must be a positive integer, got 0"),
        ({"mlp_width": 1.5}, "mlp_width must be a positive integer, got 1.5"),
        ({"time_period": 0.0}, "time_period must be positive"),
    ],
)
def test_bad_configurations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        UnmaskTransformerConfig(**fields)


def test_mlp_width_follows_width():
    assert UnmaskTransformerConfig(width=32).mlp_width == 128
    assert UnmaskTransformerConfig(width=32, mlp_width=64).mlp_width == 64
