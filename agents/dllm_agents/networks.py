"""The unmasking policy: a one-block diffusion transformer over per-position statistics, in plain torch.

The architecture is that of arXiv 2512.09106 (section 4 and appendix; released code apple/ml-rl-dllm,
``common/models/policy_layers.py``): that network never sees tokens, only how confident the dLLM is at each
position, which positions are still masked, and how many steps were used. Other inputs can be added, which
tokens are alike among them, and these left out, for ablations and for policies that serve many speeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dllm_agents.distributions import EXCLUDED_LOGIT, masked_logits
from dllm_agents.rivalry import beside, give_way
from dllm_gym.backends import cpu
from dllm_gym.envs.observations import SETTINGS

FEW_POSITIONS = 128  # up to here plain attention is faster on a CPU than torch's own; at 256 it is slower

Observation = Mapping[str, Tensor]


def _log_confidence_gap(observation: Observation) -> Tensor:
    """Half the number of nines of the confidence: 0.9 is 0.5, 0.99 is 1, 0.999 is 1.5; at most 3."""
    return (1.0 - observation["confidence"].float()).clamp(min=1e-6).log10() * -0.5


# Feature name -> (observation key it reads, how it becomes one real number per position; k for ``top_k``).
POSITION_FEATURES: dict[str, tuple[str, Callable[[Observation], Tensor]]] = {
    "confidence": ("confidence", lambda observation: observation["confidence"].float()),
    "log_confidence_gap": ("confidence", _log_confidence_gap),
    "action_mask": ("action_mask", lambda observation: observation["action_mask"].float()),
    "entropy": ("entropy", lambda observation: observation["entropy"].float()),
    "margin": ("margin", lambda observation: observation["margin"].float()),
    "written": ("written", lambda observation: observation["written"].float()),
    "quality": ("quality", lambda observation: observation["quality"].float()),
    "remasks": ("remasks", lambda observation: observation["remasks"].float()),
    "top_k": ("top_k", lambda observation: observation["top_k"].float()),
}
# Odd, so that each shuffles the ids, of which there are less than that.
_SPREAD, _IDS = (161_991, 85_077, 242_039, 51_317, 134_453, 37_509, 220_003, 113_645), 2**18


def token_codes(tokens: Tensor) -> Tensor:
    """Vectors without meaning that tell tokens apart in any vocabulary: ``(...)`` int64 to ``(..., 16)``.

    Cosines and sines of eight angles that jump from each id to the next. Equal ids have equal codes; others
    are about as far from each other as random ones.
    """
    spread = torch.tensor(_SPREAD, device=tokens.device)
    angles = (tokens[..., None] * spread % _IDS).float() * (2 * torch.pi / _IDS)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


# Feature name -> observation key it reads; it is a vector per position, with an input projection of its own.
VECTOR_FEATURES = {"hidden": "hidden", "token": "predicted"}


def _relative_attention(observation: Observation) -> Tensor:
    """What each position reads at each other, relative to reading alike everywhere, ``(B, L, L)``."""
    read = observation["attention"].float()
    return (read * read.shape[-1]).log1p()


def _same_token(observation: Observation) -> Tensor:
    """1 where two positions would be written alike, ``(B, L, L)``."""
    predicted = observation["predicted"]
    return (predicted[:, :, None] == predicted[:, None, :]).float()


# Feature name -> (observation key it reads, how it becomes one number per pair of positions), which is added
# to the scores of the network's own attention and of rivalry.
PAIR_FEATURES: dict[str, tuple[str, Callable[[Observation], Tensor]]] = {
    "attention": ("attention", _relative_attention),
    "same_token": ("predicted", _same_token),
}
# Features that modulate the blocks instead of entering an input projection.
CONDITION_FEATURES = ("mask", "progress", *SETTINGS)
# What nobody has to observe: where in the completion a position stands.
PLACE_FEATURES = ("position",)
# What begins without effect: a trained network to which it is added behaves as before.
SILENT_FEATURES = (*SETTINGS, *PAIR_FEATURES, *PLACE_FEATURES, "token")

DEFAULT_FEATURES = ("confidence", "log_confidence_gap", "mask", "action_mask", "progress")


def observed_by(features: Iterable[str]) -> tuple[str, ...]:
    """The observation keys that features read, each once."""
    key_of = {name: key for name, (key, _) in (POSITION_FEATURES | PAIR_FEATURES).items()} | VECTOR_FEATURES
    return tuple(dict.fromkeys(key_of.get(name, name) for name in features if name not in PLACE_FEATURES))


@dataclass(frozen=True)
class UnmaskTransformerConfig:
    """Sizes and inputs of an ``UnmaskTransformer``. The defaults are the paper's where it has a value.

    Attributes:
        features: Inputs, out of ``POSITION_FEATURES`` (columns of the input projection, in this order),
            ``VECTOR_FEATURES``, ``PAIR_FEATURES``, ``CONDITION_FEATURES`` and ``PLACE_FEATURES``. The
            paper's are ``("confidence", "mask", "progress")``; its ablations leave out ``progress`` or
            ``mask``, put ``top_k`` in the place of ``confidence``, or ``hidden``. With ``attention``
            positions see best those whose tokens they depend on, with ``same_token`` those that would be
            written alike, whatever the token is; with ``position`` they know how far from the completion's
            first they stand, and not only from each other; with ``token`` they know which token that is, as
            a code without meaning. What is among ``SILENT_FEATURES`` begins without effect.
        width: Size of a position's hidden state.
        heads: Number of attention heads; each gets ``width / heads`` channels, an even number.
        mlp_width: Hidden size of the feed-forward branch; None stands for ``4 * width``.
        layers: Number of transformer blocks.
        time_period: Frequencies of the time embedding rise from 1 towards 1 / time_period radians per L
            steps. The slowest is monotone over an episode; with 0.01 the fastest turns once in about
            0.07 L steps, which separates single steps at L = 48 and is still smooth at L = 256. The
            released code uses 1, where all frequencies coincide.
        time_width: Number of sinusoids in that embedding, even; None stands for ``width``.
        round_time: Whether the sinusoids of the progress are rounded to bfloat16, as in the released code.
        top_k: How many of the observation's probabilities the feature ``top_k`` takes, the largest first.
        hidden_width: Size of the dLLM's hidden state; the feature ``hidden`` needs it, nothing else does.
        initial_bias: Bias of the output: an untrained policy reveals a position with probability
            around sigmoid(-2) = 0.12 (paper, "smart initialisation").
        value_head: Whether there is a critic on top of the shared trunk.
        keep_prior: For ``actions="set-state"`` or ``"edit"``: there is a second output, for revealed
            positions. It begins as this number times ``written``, the probability of the token that stands
            there, whatever the weights are; with 5 a token that the dLLM is sure of is kept with probability
            0.993. ``None``: the policy only reveals.
        pair_width: Channels, a multiple of 2, in which positions are compared with each other for whether
            they can be revealed together (``dllm_agents.rivalry``). ``None``: each is revealed whatever
            becomes of the others.

    Raises:
        ValueError: For unknown, missing or repeated features and sizes that don't fit.
    """

    features: tuple[str, ...] = DEFAULT_FEATURES
    width: int = 128
    heads: int = 2
    mlp_width: int | None = None
    layers: int = 1
    time_period: float = 0.01
    time_width: int | None = None
    round_time: bool = False
    top_k: int = 8
    hidden_width: int | None = None
    initial_bias: float = -2.0
    value_head: bool = False
    keep_prior: float | None = None
    pair_width: int | None = None

    def __post_init__(self) -> None:
        if self.mlp_width is None:
            object.__setattr__(self, "mlp_width", 4 * self.width)
        object.__setattr__(self, "features", tuple(self.features))
        inputs = (*POSITION_FEATURES, "hidden")  # all others begin without effect
        known = (*POSITION_FEATURES, *VECTOR_FEATURES, *PAIR_FEATURES, *CONDITION_FEATURES, *PLACE_FEATURES)
        unknown = [name for name in self.features if name not in known]
        if unknown:
            raise ValueError(f"unknown features {unknown}; known: {', '.join(known)}")
        if len(set(self.features)) < len(self.features):
            raise ValueError(f"features must not repeat, got {self.features}")
        if not set(self.features) & set(inputs):
            raise ValueError(f"features must include one of {', '.join(inputs)}; got {self.features}")
        if (self.hidden_width is not None) != ("hidden" in self.features):
            raise ValueError(
                f"the feature 'hidden' and hidden_width go together, "
                f"got features {self.features} and hidden_width {self.hidden_width}"
            )
        optional = ("hidden_width", "time_width", "pair_width")
        for name in ("width", "heads", "mlp_width", "layers", "top_k", *optional):
            value = getattr(self, name)
            if name in optional and value is None:
                continue
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width must be a multiple of 2 * heads (rotary embedding turns pairs of channels), "
                f"got width {self.width} and heads {self.heads}"
            )
        if self.time_width is not None and self.time_width % 2:
            raise ValueError(f"time_width must be even (cosines and sines), got {self.time_width}")
        if self.pair_width is not None and (self.pair_width % 2 or self.keep_prior is not None):
            raise ValueError(
                f"pair_width must be even, and does not go with keep_prior, "
                f"got {self.pair_width} and keep_prior {self.keep_prior}"
            )
        for name in ("round_time", "value_head"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        self._check_finite()

    def _check_finite(self) -> None:
        largest = torch.finfo(torch.float32).max
        if not 0 < self.time_period <= largest:
            raise ValueError(f"time_period must be positive and finite, got {self.time_period}")
        for name, number in (("initial_bias", self.initial_bias), ("keep_prior", self.keep_prior or 0.0)):
            if not abs(number) <= largest:
                raise ValueError(f"{name} must be finite, got {number}")

    @property
    def columns(self) -> tuple[str, ...]:
        """The features that are columns of the input projection; ``top_k`` is several."""
        return tuple(name for name in self.features if name in POSITION_FEATURES)

    @property
    def pairs(self) -> tuple[str, ...]:
        """The features that are numbers per pair of positions."""
        return tuple(name for name in self.features if name in PAIR_FEATURES)

    @property
    def num_columns(self) -> int:
        """The number of columns of the input projection."""
        return sum(self.top_k if name == "top_k" else 1 for name in self.columns)

    @property
    def requires(self) -> tuple[str, ...]:
        """The observation keys the network reads."""
        keys = observed_by((*self.features, "mask") if self.value_head else self.features)
        keys = keys if self.pair_width is None else tuple(dict.fromkeys((*keys, "action_mask")))
        return keys if self.keep_prior is None else tuple(dict.fromkeys((*keys, "mask", "written")))


class TimeEmbedding(nn.Module):
    """Sinusoids of a number through a small MLP, as in DiT (facebookresearch/DiT, ``models.py``).

    Args:
        width: Size D of the embedding.
        period: The frequencies run from 1 towards 1 / period.
        rounded: Whether the sinusoids are rounded to bfloat16.
        inputs: Number of sinusoids S, with S / 2 frequencies; None is D.
    """

    frequencies: Tensor

    def __init__(self, width: int, period: float, rounded: bool = False, inputs: int | None = None) -> None:
        super().__init__()
        self.rounded = rounded
        half = (inputs or width) // 2
        frequencies = period ** (-torch.arange(half) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * half, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, value: Tensor) -> Tensor:
        """Maps ``(B, 1)`` to ``(B, D)``."""
        angles = value.float() * self.frequencies  # (B, S / 2)
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1)  # (B, S)
        if self.rounded:
            sinusoids = sinusoids.bfloat16().float()
        output: Tensor = self.mlp(sinusoids)
        return output


class SettingEmbedding(TimeEmbedding):
    """Embedding of a number >= 0 that matters by its ratios, as settings do.

    The sinusoids are of half the ``log1p``, with frequencies from 1 towards 20: the slowest is monotone up
    to 500, the fastest turns once when a large number grows by the factor 1.9. It begins as zero, so that a
    trained network to which it is added behaves as before.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, period=0.05)
        begin_silent(self.mlp)

    def forward(self, value: Tensor) -> Tensor:
        """Maps ``(B, 1)`` to ``(B, D)``."""
        return super().forward(value.float().log1p() / 2)


class PlaceEmbedding(TimeEmbedding):
    """Embedding of an index: the fastest sinusoid tells even from odd, the slowest turns half in 256.

    It begins as zero, as ``SettingEmbedding`` does.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, period=256.0)
        begin_silent(self.mlp)

    def forward(self, value: Tensor) -> Tensor:
        """Maps indices ``(L, 1)`` to ``(L, D)``."""
        return super().forward(value.float() * torch.pi)


def begin_silent(mlp: nn.Sequential) -> None:
    """Makes an MLP begin as zero."""
    last: Any = mlp[-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


def rotary_angles(length: int, head_width: int, device: torch.device) -> Tensor:
    """Cosines and sines ``(L, head_width / 2, 2)`` of the rotary embedding (arXiv 2104.09864)."""
    frequencies = 10000.0 ** (-torch.arange(0, head_width, 2, device=device) / head_width)
    angles = torch.outer(torch.arange(length, device=device), frequencies)  # (L, head_width / 2)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def turn(x: Tensor, rotation: Tensor) -> Tensor:
    """Turns interleaved pairs of the last dimension, as in the released code.

    Maps ``(..., L, d)`` float32 to the same shape; ``rotation`` is that of ``rotary_angles``.
    """
    pairs = x.view(*x.shape[:-1], -1, 2)  # (..., L, d / 2, 2)
    if torch.compiler.is_exporting():  # ONNX knows no complex numbers
        even, odd = pairs.unbind(-1)
        cos, sin = rotation.unbind(-1)
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    # one complex product is three times as fast on a CPU as the sum of two real ones
    turned = torch.view_as_complex(pairs) * torch.view_as_complex(rotation)
    return torch.view_as_real(turned).flatten(-2)


class Attention(nn.Module):
    """Full bidirectional attention; rotary embedding makes it depend on relative positions only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Tensor, bias: Tensor | None = None) -> Tensor:
        """Maps ``(B, L, D)`` to the same shape; for ``rotation`` and ``bias`` see ``Block.forward``."""
        batch, length, width = x.shape
        qkv = self.qkv_proj(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # all three in one copy, and so are their gradients; the products below then need none
        q, k, v = qkv.contiguous().unbind(0)  # (B, H, L, d) each
        q, k = (turn(z.float(), rotation).to(z.dtype) for z in (q, k))
        y = attend(q, k, v, bias)
        output: Tensor = self.out_proj(y.transpose(1, 2).reshape(batch, length, width))
        return output


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v of ``(B, H, L, d)``, bias ``(B, H, L, L)``: the same shape."""
    length, head_width = q.shape[2:]
    # an exported program serves every length
    if not torch.compiler.is_exporting() and q.device.type == "cpu" and length <= FEW_POSITIONS:
        return cpu.attention(q, k, v, head_width**-0.5, bias)[0]
    return F.scaled_dot_product_attention(q, k, v, bias)


class Block(nn.Module):
    """Attention and feed-forward branches under adaptive layer norm (AdaLN).

    ``x += (1 + gate) * branch(LN(x) * (1 + scale) + shift)``; the zero-initialised projection makes this
    an identity modulation with both branches active (released code), unlike DiT's adaLN-zero.
    """

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_width), nn.GELU(), nn.Linear(mlp_width, width))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: Tensor,
        conditions: Tensor,
        which: Tensor,
        rotation: Tensor,
        bias: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Maps ``(B, L, D)`` to the same shape, or to ``(M, D)``.

        Args:
            x: ``(B, L, D)``.
            conditions: ``(C, D)``, those that occur.
            which: ``(B, L)`` int64, which of them each position has.
            rotation: That of ``rotary_angles``.
            bias: ``(B, H, L, L)``, added to the scores of attention.
            at: ``(M,)`` int64, the positions wanted, out of all B L in a row; ``None``: all. The others are
                attended to, and left out from there on.
        """
        # (C, D) each: projected first, then picked
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(conditions).chunk(6, dim=-1)
        y = torch.addcmul(pick(shift1, which), self.attention_norm(x), pick(1 + scale1, which))
        x = torch.addcmul(x, pick(1 + gate1, which), self.attention(y, rotation, bias))
        if at is not None:
            x = x.flatten(0, 1).index_select(0, at)  # (M, D)
            which = which.flatten().index_select(0, at)  # (M,)
        y = torch.addcmul(pick(shift2, which), self.mlp_norm(x), pick(1 + scale2, which))
        return torch.addcmul(x, pick(1 + gate2, which), self.mlp(y))


def pick(table: Tensor, which: Tensor) -> Tensor:
    """Rows of a table ``(C, D)``, one for each number of ``which`` ``(...)``: ``(..., D)``."""
    # the gradient of index_select is several times faster on a CPU than that of table[which]
    return table.index_select(0, which.flatten()).view(*which.shape, table.shape[1])


class ValueHead(nn.Module):
    """State value from the mean over all positions and the mean over masked ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Maps ``(B, L, D)`` and the mask ``(B, L)`` to ``(B,)``."""
        weights = torch.stack([torch.ones_like(mask), mask], dim=1)  # (B, 2, L)
        # Rows that are done have no masks: clamping gives them a zero mean instead of NaN.
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1.0)
        value: Tensor = self.mlp((weights @ x).flatten(1))  # (B, 2D) -> (B, 1)
        return value.squeeze(-1)


class Rivalry(nn.Module):
    """How much two positions are in each other's way: w >= 0, symmetric, small at first."""

    def __init__(self, width: int, pair_width: int, pairs: int) -> None:
        super().__init__()
        self.qk_proj = nn.Linear(width, 2 * pair_width)
        self.bias = nn.Parameter(torch.tensor(-5.0))  # w = 0.007 at first, in nats
        self.read_weight = nn.Parameter(torch.zeros(pairs)) if pairs else None

    def forward(self, x: Tensor, pairs: Tensor | None) -> Tensor:
        """Maps hidden states ``(B, L, D)`` and features of pairs ``(B, L, L, P)`` to ``(B, L, L)``."""
        q, k = self.qk_proj(x).float().chunk(2, dim=-1)  # (B, L, d) each
        rotation = rotary_angles(x.shape[1], q.shape[-1], x.device)
        scores = turn(q.contiguous(), rotation) @ turn(k.contiguous(), rotation).transpose(1, 2)
        scores = scores * (4 / q.shape[-1] ** 0.5)
        if self.read_weight is not None and pairs is not None:
            scores = scores + pairs @ self.read_weight
        return F.softplus(scores + scores.transpose(1, 2) + self.bias)


class UnmaskTransformer(nn.Module):
    """Maps a batched observation to one logit per position: b^k, with reveal probability sigmoid(b^k).

    It runs at any completion length, and every position is scored in the light of all others. There is no
    absolute position in it unless ``position`` is one of its features. With
    ``features=("confidence", "mask", "progress")`` it is the paper's network of 331,265 parameters.

    Args:
        config: Sizes and inputs.
    """

    def __init__(self, config: UnmaskTransformerConfig) -> None:
        super().__init__()
        self.config = config
        width, mlp_width = config.width, config.mlp_width or 4 * config.width
        self.input_proj = nn.Linear(config.num_columns, width) if config.columns else None
        self.hidden_proj = nn.Linear(config.hidden_width, width) if config.hidden_width else None
        self.mask_embedding = nn.Embedding(2, width) if "mask" in config.features else None
        self.time_embedding = (
            TimeEmbedding(width, config.time_period, config.round_time, config.time_width)
            if "progress" in config.features
            else None
        )
        self.setting_embeddings = nn.ModuleDict(
            {name: SettingEmbedding(width) for name in SETTINGS if name in config.features}
        )
        self.blocks = nn.ModuleList(Block(width, config.heads, mlp_width) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(width)
        self.output_proj = nn.Linear(width, 1)
        self.keep_proj = None if config.keep_prior is None else nn.Linear(width, 1)
        self.value_head = ValueHead(width) if config.value_head else None
        # Per block and head, the weights of each feature of a pair and of the same the other way round.
        self.pair_weights = (
            nn.Parameter(torch.zeros(config.layers, config.heads, 2 * len(config.pairs)))
            if config.pairs
            else None
        )
        self.rivalry = (
            None if config.pair_width is None else Rivalry(width, config.pair_width, len(config.pairs))
        )
        self.token_proj = (
            nn.Linear(2 * len(_SPREAD), width, bias=False) if "token" in config.features else None
        )
        if self.token_proj is not None:
            nn.init.zeros_(self.token_proj.weight)
        self.place_embedding = PlaceEmbedding(width) if "position" in config.features else None
        # The weight stays random, so that untrained logits differ between positions.
        nn.init.constant_(self.output_proj.bias, config.initial_bias)
        if self.keep_proj is not None:
            nn.init.zeros_(self.keep_proj.weight)
            nn.init.zeros_(self.keep_proj.bias)

    @property
    def num_parameters(self) -> int:
        """Number of trainable numbers, the value head included."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, observation: Observation, bolder: Tensor | float = 0.0) -> Tensor:
        """Logits ``(B, L)``, float32.

        Args:
            observation: The batched observation; it must hold ``config.requires``. What else it holds is
                ignored.
            bolder: Added to the logits, or ``(B, 1)`` to those of each row, before positions give way to each
                other.

        Raises:
            ValueError: If ``top_k`` or ``hidden`` is too narrow or of another dLLM.
        """
        pairs = self._pairs(observation)
        return self._settled(self._trunk(observation, pairs), pairs, observation, bolder)

    def candidate_logits(self, observation: Observation, bolder: Tensor | float = 0.0) -> Tensor:
        """Logits ``(B, L)``, float32, of the positions in ``action_mask``; elsewhere -1e8.

        ``masked_logits`` of ``forward`` with less work, for training: behind the last attention only the
        positions in ``action_mask`` are computed. How many those of all rows are may change the last bits,
        as processors sum a handful of rows in another order. With a ``pair_width`` all of a row have a say
        in each other, and nothing is saved.

        Args:
            observation: See ``forward``.
            bolder: See there.

        Raises:
            ValueError: As ``forward``.
        """
        action_mask = observation["action_mask"]
        if self.rivalry is not None:
            return masked_logits(self.forward(observation, bolder), action_mask)
        at = action_mask.flatten().nonzero().squeeze(1)  # (M,)
        of_candidates = self._logits(self._trunk(observation, self._pairs(observation), at), observation, at)
        everywhere = of_candidates.new_full((action_mask.numel(),), EXCLUDED_LOGIT)
        return everywhere.index_put((at,), of_candidates).view(action_mask.shape) + bolder

    def logits_of(self, observation: Observation, actions: Tensor) -> Tensor:
        """Logits ``(M,)``, float32, of what ``actions`` ``(B, L)`` reveal, in order, each beside the others.

        Raises:
            ValueError: As ``forward``.
        """
        at = actions.flatten().nonzero().squeeze(1)  # (M,)
        pairs = self._pairs(observation)
        if self.rivalry is None:
            return self._logits(self._trunk(observation, pairs, at), observation, at)
        x = self._trunk(observation, pairs)
        rivalry = self.rivalry(x, pairs)
        logits = beside(self._logits(x, observation), rivalry, observation["action_mask"], actions)
        return logits.flatten().index_select(0, at)

    def forward_actor_critic(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """Logits ``(B, L)`` and state values ``(B,)``.

        Raises:
            ValueError: If the network has no value head.
        """
        if self.value_head is None:
            raise ValueError("this network has no value head; build it with value_head=True")
        pairs = self._pairs(observation)
        x = self._trunk(observation, pairs)
        return self._settled(x, pairs, observation), self.value_head(x, observation["mask"].float())

    def _settled(
        self, x: Tensor, pairs: Tensor | None, observation: Observation, bolder: Tensor | float = 0.0
    ) -> Tensor:
        """Logits ``(B, L)`` after positions have given way to each other."""
        logits = self._logits(x, observation) + bolder
        if self.rivalry is None:
            return logits
        return give_way(logits, self.rivalry(x, pairs), observation["action_mask"])

    def _trunk(self, observation: Observation, pairs: Tensor | None, at: Tensor | None = None) -> Tensor:
        """Hidden states ``(B, L, D)``, or those ``(M, D)`` of the positions ``at``."""
        if self.keep_proj is not None:  # the trunk sees what it did when its policy only revealed
            masked = observation["action_mask"] * (observation["mask"] != 0)
            observation = {**observation, "action_mask": masked}
        x = self._input(observation)  # (B, L, D)
        conditions, which = self._conditions(observation, x)
        rotation = rotary_angles(x.shape[1], self.config.width // self.config.heads, x.device)
        biases = self._biases(pairs)
        *blocks, last = self.blocks
        for block, bias in zip(blocks, biases[:-1], strict=True):
            x = block(x, conditions, which, rotation, bias)
        output: Tensor = self.final_norm(last(x, conditions, which, rotation, biases[-1], at))
        return output

    def _biases(self, pairs: Tensor | None) -> Sequence[Tensor | None]:
        """Of each block, what is added to its attention's scores, ``(B, H, L, L)``; ``None``: nothing."""
        if self.pair_weights is None or pairs is None:
            return [None] * len(self.blocks)
        pairs = torch.stack([pairs, pairs.transpose(1, 2)], dim=-1).flatten(-2)  # (B, L, L, 2 P)
        return [(pairs @ weights.T).permute(0, 3, 1, 2) for weights in self.pair_weights]

    def _pairs(self, observation: Observation) -> Tensor | None:
        """The features of pairs of positions, ``(B, L, L, P)``; ``None``: there are none."""
        if not self.config.pairs:
            return None
        return torch.stack([PAIR_FEATURES[name][1](observation) for name in self.config.pairs], dim=-1)

    def _conditions(self, observation: Observation, x: Tensor) -> tuple[Tensor, Tensor]:
        """The condition vectors that occur, ``(C, D)``, and which of them each position has, ``(B, L)``.

        Each row has two, for revealed and for masked positions; one, if masks are no feature; and all rows
        have the same, if nothing else is.
        """
        if self.mask_embedding is not None:
            conditions = self.mask_embedding.weight  # (2, D)
            which = (observation["mask"] != 0).long()  # (B, L)
        else:
            conditions = x.new_zeros(1, x.shape[2])
            which = x.new_zeros(x.shape[:2], dtype=torch.int64)
        of_row: list[Tensor] = []
        if self.time_embedding is not None:
            of_row.append(self.time_embedding(observation["progress"])[:, None])  # (B, 1, D)
        for name, embedding in self.setting_embeddings.items():
            of_row.append(embedding(observation[name])[:, None])
        if of_row:
            which = which + len(conditions) * torch.arange(x.shape[0], device=x.device)[:, None]
            for vectors in of_row:
                conditions = conditions + vectors  # (B, 1 or 2, D)
            conditions = conditions.flatten(0, 1)
        return conditions, which

    def _input(self, observation: Observation) -> Tensor:
        parts: list[Tensor] = []
        if self.input_proj is not None:
            columns = [self._columns(name, observation) for name in self.config.columns]
            parts.append(self.input_proj(torch.cat(columns, dim=-1)))  # (B, L, F) -> (B, L, D)
        if self.hidden_proj is not None:
            hidden, width = observation["hidden"], self.hidden_proj.in_features
            if hidden.shape[-1] != width:
                raise ValueError(
                    f"the observation's hidden states have width {hidden.shape[-1]}, "
                    f"this network is made for a dLLM of width {width}"
                )
            parts.append(self.hidden_proj(hidden.float()))
        if self.token_proj is not None:
            parts.append(self.token_proj(token_codes(observation["predicted"].long())))
        if self.place_embedding is not None:
            places = torch.arange(parts[0].shape[1], device=parts[0].device)
            parts.append(self.place_embedding(places[:, None]))  # (L, D)
        return sum(parts[1:], parts[0])

    def _columns(self, name: str, observation: Observation) -> Tensor:
        values = POSITION_FEATURES[name][1](observation)
        if name != "top_k":
            return values[..., None]  # (B, L, 1)
        wanted = self.config.top_k
        if values.shape[-1] < wanted:
            raise ValueError(
                f"the observation's top_k holds {values.shape[-1]} probabilities per position, this network "
                f"reads {wanted}: make the environment with top_k={wanted}"
            )
        return values[..., :wanted]  # (B, L, k)

    def _logits(self, x: Tensor, observation: Observation, at: Tensor | None = None) -> Tensor:
        logits: Tensor = self.output_proj(x).squeeze(-1).float()
        if self.keep_proj is None or self.config.keep_prior is None:  # which say the same
            return logits
        mask, written = observation["mask"], observation["written"].float()
        if at is not None:
            mask, written = (values.flatten().index_select(0, at) for values in (mask, written))
        keep = self.keep_proj(x).squeeze(-1).float() + self.config.keep_prior * written
        return torch.where(mask != 0, logits, keep)
