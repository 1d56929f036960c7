"""Which published loops there are, and the settings in which each is compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers import loops, remasking, rules
from benchmarks.peers.adapters import NAMES
from benchmarks.peers.canvases import LENGTH, Case, Loop


@dataclass(frozen=True)
class Peer:
    """A published loop: how it is loaded from a checkout, what is compared, and how it is timed.

    Attributes:
        load: Makes the loop.
        cases: The settings.
        repository: Whose checkout it takes, on GitHub.
        batches: Whether it takes several prompts at a time.
        timed: Whether it is timed. Loops that are shown what only this command gives them are not.
    """

    load: Callable[[Path], Loop]
    cases: tuple[Case, ...]
    repository: str = ""
    batches: bool = False
    timed: bool = True


def _steps(agent: str, block_length: int, steps: int, **peer: Any) -> Case:
    """For loops that are told how many steps a block of the completion takes."""
    told = {"steps": steps * (LENGTH // block_length), **peer}
    return Case(agent, block_length, told, threshold=peer.get("threshold"))


def _rule(agent: str, block_length: int, env: dict[str, Any] | None = None, **peer: Any) -> Case:
    """For loops that publish a rule."""
    limits = ("threshold", "conf_threshold", "fast_threshold", "high_confidence_threshold")
    threshold = next((peer[name] for name in limits if name in peer), None)
    return Case(agent, block_length, peer, threshold, env or {})


LLADA = (
    _steps("confidence:k=1", 8, 8),
    _steps("confidence:k=2", 48, 24),
    _steps("confidence:steps_per_block=3", 8, 3),
    _steps("confidence:steps_per_block=7", 16, 7),
    _steps("confidence:steps_per_block=13", 48, 13),
    _steps("random:k=1", 8, 8, remasking="random"),
    _steps("random:steps_per_block=7", 16, 7, remasking="random"),
    _steps("random:steps_per_block=13", 48, 13, remasking="random"),
)
FAST_DLLM = (
    _steps("confidence:steps_per_block=7", 16, 7),
    _steps("fast-dllm:threshold=0.9", 8, 8, threshold=0.9),
    _steps("fast-dllm:threshold=0.9", 48, 48, threshold=0.9),
    _steps("fast-dllm:threshold=0.6", 16, 16, threshold=0.6),
)
FAST_DLLM_FACTOR = (  # in newer versions only
    _steps("fast-dllm-factor-released:factor=1", 8, 8, factor=1.0),
    _steps("fast-dllm-factor-released:factor=0.5", 16, 16, factor=0.5),
    _steps("fast-dllm-factor-released:factor=1.5", 48, 48, factor=1.5),
)
DLLM = (
    Case("fast-dllm:threshold=0.9", 8, {"steps": 48, "threshold": 0.9}, 0.9),
    Case("fast-dllm:threshold=0.9", 48, {"steps": 48, "threshold": 0.9}, 0.9),
)
ML_RL_DLLM = (
    Case("fast-dllm:threshold=0.9", 8, {"remasking": "fastdllm", "thres": 0.9}, 0.9),
    Case("fast-dllm:threshold=0.9", 48, {"remasking": "fastdllm", "thres": 0.9}, 0.9),
    Case("confidence:k=2", 48, {"remasking": "low_confidence", "steps": 24}),
)
_KLASS: dict[str, Any] = {"steps": 48, "alg": "klass"}
KLASS = (
    _rule("klass:threshold=0.9,divergence=0.01", 16, **_KLASS, conf_threshold=0.9, kl_threshold=0.01),
    _rule("klass:threshold=0.6,divergence=0.015", 48, **_KLASS, conf_threshold=0.6, kl_threshold=0.015),
    _rule(
        "klass:threshold=0.3,divergence=0.1,history=1",
        48,
        **_KLASS,
        conf_threshold=0.3,
        kl_threshold=0.1,
        kl_history_length=1,
    ),
)
_DAWN: dict[str, Any] = {"steps": 48, "dawn": True}
DAWN = (
    _rule("dawn", 16, **_DAWN, tau_low=0.75),
    _rule("dawn:anchored=0.5,apart=0.4,edge=0.03,sink=0.05", 16, **_DAWN, tau_sink=0.05, tau_edge=0.03,
          tau_induce=0.5, tau_low=0.4),
    _rule("dawn:anchored=0.5,apart=0.4,edge=0.03,sink=0.05", 48, **_DAWN, tau_sink=0.05, tau_edge=0.03,
          tau_induce=0.5, tau_low=0.4),
)  # fmt: skip
_LEAP: dict[str, Any] = {"steps": 48, "local_leap": True}
LOCAL_LEAP = (
    _rule("local-leap", 16, **_LEAP, threshold=0.9, relaxed_threshold=0.75, radius=4),
    _rule("local-leap:threshold=0.6,relaxed=0.3,radius=2", 48, **_LEAP, threshold=0.6, relaxed_threshold=0.3,
          radius=2),
)  # fmt: skip
DAPD = (
    _rule("dapd", 16, tau_min=0.01, tau_max=0.05, fast_threshold=0.9),
    _rule("dapd:low=0.005,high=0.02,threshold=0.6", 48, tau_min=0.005, tau_max=0.02, fast_threshold=0.6),
)
CLAD = (
    _rule("clad", 16, steps=48, threshold=0.7),
    _rule("clad", 48, steps=48, threshold=0.7),
    _rule("clad:threshold=0.4", 48, steps=48, threshold=0.4),
)
WINO = (
    _rule("wino", 16, threshold=0.7, threshold_back=0.9),
    _rule("wino:threshold=0.6", 48, threshold=0.6, threshold_back=0.9),
    _rule("wino:threshold=0.3,doubt=0.5", 48, threshold=0.3, threshold_back=0.5),
)
SABER = (
    _rule("saber", 48, n=2),
    _rule("saber:least=4", 48, n=4),
)
RCR = (
    _rule("rcr:k=3", 48, steps=16, rcr=True, conf_alg="low_confidence"),
    _rule("rcr:k=12", 48, steps=4, rcr=True, conf_alg="low_confidence"),
    _rule("rcr:k=1", 48, steps=48, rcr=True, conf_alg="low_confidence"),
)
PC_SAMPLER = (
    _rule("pc-sampler:decay=0.25,k=1", 16, steps=48, lambd=0.25, alpha=10),
    _rule("pc-sampler:decay=0.1,k=2,cap=0.5", 48, steps=24, lambd=0.1, alpha=0.5),
    _rule("pc-sampler:decay=0.5,k=2", 48, steps=24, lambd=0.5, alpha=10),
)
EB_SAMPLER = (
    _rule("eb-sampler:gamma=0.1", 48, gamma=0.1),
    _rule("eb-sampler:gamma=1", 48, gamma=1.0),
)
EOSER = (
    _rule("eoser:damping=0.4,k=1", 48, steps=48, eos_min_gamma=0.4),
    _rule("eoser:damping=0.01,k=2", 48, steps=24, eos_min_gamma=0.01),
)
ASS = (_rule("ass:growth=2", 48, steps=5, block_num=1),)
ADABLOCK = (
    _rule("adablock:threshold=0.9,block_length=16,delimiter=19", 48, init_block_length=16, threshold=0.9,
          delimiter_ids=[19], delimiter_threshold=0.3),
    _rule("adablock:threshold=0.6,block_length=8,delimiter=19", 48, init_block_length=8, threshold=0.6,
          delimiter_ids=[19], delimiter_threshold=0.3),
)  # fmt: skip
SLOW_FAST = (
    _rule("slow-fast:explore=2", 48, k_exploration_steps=2, high_confidence_threshold=0.9),
    _rule("slow-fast:threshold=0.6,sureness=0.2,explore=2", 48, high_confidence_threshold=0.6,
          cycle_len_confidence_threshold=0.2, k_exploration_steps=2),
    _rule("slow-fast", 48, high_confidence_threshold=0.9),
)  # fmt: skip
MULTI_BLOCK = (
    _rule("multi-block:entropy=0.5,block_length=16", 48, block_size=16, threshold=0.5),
    _rule("multi-block:entropy=1,opening=0.1,block_length=8", 48, block_size=8, threshold=1.0,
          block_add_threshold=0.1),
)  # fmt: skip
CREDIT = (
    _rule("credit:threshold=0.9", 16, threshold=0.9),
    _rule("credit:threshold=0.6", 48, threshold=0.6),
)
SCHED = (
    _rule("sched:schedule=cosine", 48, steps=48, eps=-1e-4, max_change_ratio=1.0),
    _rule("sched:high=3,low=1,schedule=linear", 48, steps=48, eps=-1e-4, tau_high=3.0, tau_low=1.0,
          tau_mode="linear", max_change_ratio=1.0),
)  # fmt: skip
REMEDI = (
    _rule("remedi:k=1", 16, steps=16),
    _rule("remedi:k=3", 48, steps=16),
)
T2M = (
    _rule("t2m:threshold=0.7", 16, {"max_steps": 200}, threshold=0.7, strategy="low_prob", limit=0.5),
    _rule("t2m:threshold=0.4,limit=0.6", 48, {"max_steps": 200}, threshold=0.4, strategy="low_prob",
          limit=0.6),
    _rule("t2m:threshold=0.4,signal=logit-diff,limit=0.1", 48, {"max_steps": 200}, threshold=0.4,
          strategy="logit_diff", limit=0.1),
)  # fmt: skip
_BLOCKLESS = ("gen_length", "mask_id")


def _pc(function: str, *names: str) -> Callable[[Path], Loop]:
    return partial(rules.load_pc_sampler, function=function, names=names or tuple(NAMES))


def _eoser(function: str, *names: str) -> Callable[[Path], Loop]:
    return partial(rules.load_eoser, function=function, names=names or tuple(NAMES))


PEERS = {
    "llada": Peer(partial(loops.load_generate, batches=True), LLADA, "ML-GSAI/LLaDA", batches=True),
    "fast-dllm": Peer(partial(loops.load_generate, batches=False), FAST_DLLM, "NVlabs/Fast-dLLM"),
    "fast-dllm-factor": Peer(
        partial(loops.load_generate, batches=False), FAST_DLLM_FACTOR, "NVlabs/Fast-dLLM"
    ),
    "dllm": Peer(loops.load_dllm, DLLM, "ZHZisZZ/dllm", batches=True),
    "ml-rl-dllm": Peer(loops.load_ml_rl_dllm, ML_RL_DLLM, "apple/ml-rl-dllm", batches=True),
    **{
        name: Peer(load, cases, repository, timed=False)
        for name, load, cases, repository in (
            ("klass", rules.load_klass, KLASS, "shkim0116/KLASS"),
            ("local-leap", rules.load_dawn, LOCAL_LEAP, "lizhuo-luo/DAWN"),
            ("dapd", rules.load_dapd, DAPD, "ziyigu2004/CLAD"),
            ("dawn", rules.load_dawn, DAWN, "lizhuo-luo/DAWN"),
            ("dawn-as-published", partial(rules.load_dawn, as_here=False), DAWN, "lizhuo-luo/DAWN"),
            ("clad", rules.load_clad, CLAD, "ziyigu2004/CLAD"),
            ("pc-sampler", _pc("generate_with_pc_sampler"), PC_SAMPLER, "NEUIR/PC-Sampler"),
            ("eb-sampler", _pc("generate_with_eb_sampler", *_BLOCKLESS), EB_SAMPLER, "NEUIR/PC-Sampler"),
            ("credit", rules.load_credit, CREDIT, "inclusionAI/dInfer"),
            ("credit-as-published", partial(rules.load_credit, as_here=False), CREDIT, "inclusionAI/dInfer"),
            ("multi-block", rules.load_multi_block, MULTI_BLOCK, "hao-ai-lab/d3LLM"),
            ("slow-fast", rules.load_slow_fast, SLOW_FAST, "LiangrunFlora/Slow-Fast-Sampling"),
            ("adablock", rules.load_adablock, ADABLOCK, "lgxi24/AdaBlock-dLLM"),
            ("eoser", _eoser("eoser_generate"), EOSER, "yjyddq/EOSER-ASS-RL"),
            ("ass", _eoser("ass_generate", *_BLOCKLESS), ASS, "yjyddq/EOSER-ASS-RL"),
            ("sched", rules.load_sched, SCHED, "amr-mohamedd/SchED"),
            ("wino", remasking.load_wino, WINO, "Feng-Hong/WINO-DLLM"),
            ("wino-as-published", partial(remasking.load_wino, as_here=False), WINO, "Feng-Hong/WINO-DLLM"),
            ("saber", remasking.load_saber, SABER, "zhaoyMa/Saber"),
            ("saber-as-published", partial(remasking.load_saber, as_here=False), SABER, "zhaoyMa/Saber"),
            ("rcr", remasking.load_rcr, RCR, "autonomousvision/mdpo"),
            ("remedi", remasking.load_remedi, REMEDI, "maple-research-lab/RemeDi"),
            ("t2m", remasking.load_t2m, T2M, "synsis/remasked_DLM"),
        )
    },
}
