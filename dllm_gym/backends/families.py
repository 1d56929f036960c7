"""Which checkpoints can be loaded, and how: one row per model family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dllm_gym.backends import dream, llada, masked_lm, moe, stock
from dllm_gym.backends.word_tokenizer import SpecialTokens

if TYPE_CHECKING:
    from torch import Tensor

# How a row was verified; tests/test_families.py does it for every one of them, in float32 and in the
# published layout. Where no published config.json was at hand, the layout is that of the publisher's code.
_PARITY = "parity with an independent forward, tiny random weights"
_BY_CODE = f"{_PARITY}; config.json after the published code"


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a family's checkpoints map to a stock transformers class.

    Attributes:
        name: Shown to the user.
        published: Checkpoints of this layout, the best known first.
        verified: How it is known that they are computed rightly.
        matches: Recognises a checkpoint by its whole ``config.json``.
        model_class: Name of the transformers class that computes it.
        translate: ``config.json`` to the config of that class.
        key_mapping: Checkpoint tensor names to transformers' names, as regular expressions.
        unused: Checkpoint tensors that filling masks does not need, as regular expressions.
        conversions: Makes the transformers ``WeightConverter`` list for what renaming cannot do; ``None``
            leaves transformers' own for the class.
        shift_logits: Whether row i - 1 of the output is about token i, row 0 being about tokens 0 and 1.
        attention_block: ``config.json`` and the checkpoint's name to the length of the blocks that see
            themselves and what is left of them; ``None`` if every token sees every other.
        blocks_from: Where the publisher starts to count blocks: at the first token of the ``sequence``
            or of the ``completion``.
        rotary: Whether only the distance of two tokens matters, so that padding on the left is harmless.
        tokenizer_class: Name of the transformers class that reads the publisher's tokenizer files; a
            ``tokenizer.json`` needs none of its own.
        special_tokens: As the publisher's tokenizer spells them; ``None`` where its roles tell them.
        mask_token_id: The published mask id, for checkpoints that do not say it.
        end_roles: Attributes of the tokenizer whose tokens end a completion, besides those that
            ``config.json`` and ``generation_config.json`` name.
        end_text: Text that ends a completion where no token does.
        chat_template: Taken where the tokenizer has none.
        chat_options: Further arguments for the chat template.
        bos_without_chat: Whether plain text, for a model without chat template, begins with the first token.
    """

    name: str
    published: tuple[str, ...]
    verified: str
    matches: Callable[[Mapping[str, Any]], bool]
    model_class: str
    translate: Callable[[Mapping[str, Any]], Any]
    key_mapping: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    conversions: Callable[[], list[Any]] | None = None
    shift_logits: bool = False
    attention_block: Callable[[Mapping[str, Any], str], int | None] | None = None
    blocks_from: str = "sequence"
    rotary: bool = True
    tokenizer_class: str = "Qwen2Tokenizer"
    special_tokens: SpecialTokens | None = None
    mask_token_id: int | None = None
    end_roles: tuple[str, ...] = ("eos_token_id",)
    end_text: str | None = None
    chat_template: str | None = None
    chat_options: Mapping[str, Any] = field(default_factory=dict)
    bos_without_chat: bool = False


@dataclass(frozen=True, kw_only=True)
class Layout(Family):
    """A family whose checkpoints can be written, too: the layouts of ``dllm-gym pretrain``.

    Attributes:
        special_tokens: As the publisher's tokenizer spells them.
        write_config: Sizes to a ``config.json`` with the publisher's fields.
        checkpoint_names: Tensors under transformers' names to the same under the checkpoint's.
    """

    special_tokens: SpecialTokens
    write_config: Callable[..., dict[str, Any]]
    checkpoint_names: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def _a2d(kind: str, published: tuple[str, ...], end_of_turn: str, *needed: str) -> Family:
    """An autoregressive model of ``kind``, made a diffusion model by ``ZHZisZZ/dllm``."""
    return Family(
        name=f"A2D-{kind}",
        published=published,
        verified=_BY_CODE,
        matches=stock.of_model_type(f"a2d-{kind.lower()}"),
        model_class=f"{kind}ForCausalLM",
        translate=stock.stock_config(f"A2D-{kind}", f"{kind}Config", *needed),
        attention_block=stock.a2d_block,
        blocks_from="completion",
        special_tokens=SpecialTokens(
            bos="<|im_start|>", eos="<|endoftext|>", eot=end_of_turn, mask="<|mask|>"
        ),
        chat_options={"enable_thinking": False},
    )


_QWEN3_SPECIAL = SpecialTokens(bos="<|im_start|>", eos="<|endoftext|>", eot="<|im_end|>", mask="<|MASK|>")
_ANT_SPECIAL = SpecialTokens(bos="<|startoftext|>", eos="<|endoftext|>", eot="<|role_end|>", mask="<|mask|>")

# The first row that matches is taken.
FAMILIES: tuple[Family, ...] = (
    Family(
        name="iLLaDA",
        published=("GSAI-ML/iLLaDA-8B-Instruct", "GSAI-ML/iLLaDA-8B-Base"),
        verified=_BY_CODE,
        matches=llada.is_tied_llada,
        model_class="LlamaForCausalLM",
        translate=llada.to_llama_config,
        key_mapping=llada.KEY_MAPPING,
        tokenizer_class="PreTrainedTokenizerFast",
        mask_token_id=5,
    ),
    Layout(
        name="LLaDA",
        published=(llada.PUBLISHED, "GSAI-ML/LLaDA-8B-Base", "GSAI-ML/LLaDA-1.5"),
        verified=f"{_PARITY}; two embedded dLLMs",
        matches=llada.is_dense_llada,
        model_class="LlamaForCausalLM",
        translate=llada.to_llama_config,
        key_mapping=llada.KEY_MAPPING,
        tokenizer_class="PreTrainedTokenizerFast",
        special_tokens=llada.SPECIAL_TOKENS,
        write_config=llada.llada_config,
        checkpoint_names=llada.to_llada_names,
    ),
    Family(
        name="LLaDA-MoE",
        published=("inclusionAI/LLaDA-MoE-7B-A1B-Instruct", "inclusionAI/LLaDA-MoE-7B-A1B-Base"),
        verified=_BY_CODE,
        matches=moe.is_llada_moe,
        model_class="Qwen3MoeForCausalLM",
        translate=moe.to_qwen3_moe_config,
        tokenizer_class="PreTrainedTokenizerFast",
        special_tokens=_ANT_SPECIAL,
        mask_token_id=156895,
    ),
    Family(
        name="LLaDA2",
        published=("inclusionAI/LLaDA2.0-mini", "inclusionAI/LLaDA2.0-flash", "inclusionAI/LLaDA2.1-mini"),
        verified=_BY_CODE,
        matches=moe.is_llada2,
        model_class="Glm4MoeForCausalLM",
        translate=moe.to_glm4_moe_config,
        key_mapping=moe.LLADA2_KEY_MAPPING,
        conversions=moe.llada2_conversions,
        attention_block=moe.llada2_block,
        tokenizer_class="PreTrainedTokenizerFast",
        special_tokens=_ANT_SPECIAL,
        mask_token_id=156895,
        end_roles=("eos_token_id", "pad_token_id"),
    ),
    Layout(
        name="Dream",
        published=(
            dream.PUBLISHED,
            "Dream-org/Dream-v0-Base-7B",
            "Dream-org/Dream-Coder-v0-Instruct-7B",
            "apple/DiffuCoder-7B-cpGRPO",
        ),
        verified=f"{_PARITY}; one embedded dLLM",
        matches=dream.is_dream,
        model_class="Qwen2ForCausalLM",
        translate=dream.to_qwen2_config,
        shift_logits=True,
        special_tokens=dream.SPECIAL_TOKENS,
        mask_token_id=151666,
        bos_without_chat=True,
        write_config=dream.dream_config,
        checkpoint_names=dict,
    ),
    _a2d("Llama", (), "<|eot_id|>"),
    _a2d(
        "Qwen2",
        (
            "dllm-hub/Qwen2.5-Coder-0.5B-Instruct-diffusion-mdlm-v0.1",
            "dllm-hub/Qwen2.5-Coder-0.5B-Instruct-diffusion-bd3lm-v0.1",
        ),
        "<|im_end|>",
    ),
    _a2d(
        "Qwen3",
        ("dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1", "dllm-hub/Qwen3-0.6B-diffusion-bd3lm-v0.1"),
        "<|im_end|>",
        "head_dim",
    ),
    Family(
        name="SDAR",
        published=("JetLM/SDAR-8B-Chat", "JetLM/SDAR-1.7B-Chat", "Gen-Verse/TraDo-8B-Instruct"),
        verified=_BY_CODE,
        matches=stock.of_model_type("sdar"),
        model_class="Qwen3ForCausalLM",
        translate=stock.stock_config("SDAR", "Qwen3Config", "head_dim"),
        attention_block=stock.sdar_block,
        special_tokens=_QWEN3_SPECIAL,
        mask_token_id=151669,
    ),
    Family(
        name="SDAR-MoE",
        published=("JetLM/SDAR-30B-A3B-Chat", "JetLM/SDAR-30B-A3B-Sci"),
        verified=_BY_CODE,
        matches=stock.of_model_type("sdar_moe"),
        model_class="Qwen3MoeForCausalLM",
        translate=stock.stock_config("SDAR-MoE", "Qwen3MoeConfig", *moe.NEEDED),
        attention_block=stock.sdar_block,
        special_tokens=_QWEN3_SPECIAL,
        mask_token_id=151669,
    ),
    Family(
        name="Fast-dLLM-v2",
        published=("Efficient-Large-Model/Fast_dLLM_v2_7B", "Efficient-Large-Model/Fast_dLLM_v2_1.5B"),
        verified=_BY_CODE,
        matches=stock.of_model_type("fast_dllm_qwen"),
        model_class="Qwen2ForCausalLM",
        translate=stock.stock_config("Fast-dLLM-v2", "Qwen2Config"),
        shift_logits=True,
        attention_block=stock.fast_dllm_block,
        special_tokens=SpecialTokens(
            bos="<|im_start|>", eos="<|endoftext|>", eot="<|im_end|>", mask="|<MASK>|"
        ),
        mask_token_id=151665,
    ),
    Family(
        name="Stable-DiffCoder",
        published=("ByteDance-Seed/Stable-DiffCoder-8B-Instruct", "ByteDance-Seed/Stable-DiffCoder-8B-Base"),
        verified=_BY_CODE,
        matches=stock.is_stable_diffcoder,
        model_class="LlamaForCausalLM",
        translate=stock.stock_config("Stable-DiffCoder", "LlamaConfig"),
        attention_block=stock.sdar_block,
        tokenizer_class="PreTrainedTokenizerFast",
        special_tokens=SpecialTokens(
            bos="<[begin▁of▁sentence]>",
            eos="<[end▁of▁sentence]>",
            eot="<[end▁of▁sentence]>",
            mask="<[MASK_TOKEN]>",
        ),
        mask_token_id=5,
    ),
    Family(
        name="ModernBERT-chat",
        published=("dllm-hub/ModernBERT-large-chat-v0.1", "dllm-hub/ModernBERT-base-chat-v0.1"),
        verified=_PARITY,
        matches=masked_lm.is_modernbert,
        model_class="AutoModelForMaskedLM",
        translate=masked_lm.native_config,
        rotary=False,
        tokenizer_class="AutoTokenizer",
        end_roles=("eos_token_id", "sep_token_id", "pad_token_id"),
        end_text=masked_lm.ANSWER_END,
        chat_template=masked_lm.CHAT_TEMPLATE,
    ),
    Family(
        name="MaskedLM",
        published=("google-bert/bert-base-uncased",),
        verified=f"{_PARITY}, of BERT; other types are computed by the same path",
        matches=masked_lm.is_masked_lm,
        model_class="AutoModelForMaskedLM",
        translate=masked_lm.native_config,
        unused=masked_lm.OTHER_HEADS,
        rotary=False,
        tokenizer_class="AutoTokenizer",
        end_roles=("eos_token_id", "sep_token_id", "pad_token_id"),
    ),
)


def family_of(config: Mapping[str, Any], source: str) -> Family:
    """The family a checkpoint's ``config.json`` belongs to.

    Raises:
        ValueError: If it is none of the known ones.
    """
    for family in FAMILIES:
        if family.matches(config):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise ValueError(
        f"{source} is no supported dLLM: model_type={config.get('model_type')!r}, "
        f"architectures={config.get('architectures')!r}; supported families: {known}"
    )


def family_named(layout: str) -> Layout:
    """The writable family whose name in lower case is ``layout``.

    Raises:
        ValueError: If there is none.
    """
    layouts = {family.name.lower(): family for family in FAMILIES if isinstance(family, Layout)}
    if layout not in layouts:
        raise ValueError(f"unknown layout {layout!r}; choose one of {', '.join(layouts)}")
    return layouts[layout]
