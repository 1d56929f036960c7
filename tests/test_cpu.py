"""What makes small dLLMs fast on a CPU must change neither results nor a user's own settings."""

import subprocess
import sys

import pytest
import torch

from dllm_gym.backends import cpu
from dllm_gym.backends.llada import llada_config, to_llama_config


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_is_that_of_transformers(kv_heads):
    from transformers import LlamaForCausalLM

    cpu.register_attention()
    sizes = {"vocab_size": 50, "width": 32, "layers": 2, "heads": 4, "mlp_width": 48, "max_length": 64}
    config = to_llama_config(
        llada_config(**sizes, kv_heads=kv_heads, rope_theta=100.0, mask_token_id=1, eos_token_id=2)
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    tokens = torch.randint(3, 50, (3, 20))
    real = torch.ones_like(tokens)
    real[1, :5] = 0
    outputs = {}
    for name in ("eager", "sdpa", cpu.ATTENTION):
        model.set_attn_implementation(name)
        with torch.inference_mode():
            outputs[name] = model(input_ids=tokens, attention_mask=real).logits[real.bool()]
    torch.testing.assert_close(outputs[cpu.ATTENTION], outputs["eager"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs[cpu.ATTENTION], outputs["sdpa"], atol=1e-5, rtol=1e-5)


def call(environment):
    code = "from dllm_gym.backends.cpu import keep_freed_memory; print(keep_freed_memory())"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_a_users_own_malloc_settings_are_left_alone():
    assert call({"MALLOC_ARENA_MAX": "2"}) == "False"
    assert call({"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}) == "False"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_is_kept():
    import platform

    assert call({}) == str(platform.libc_ver()[0] == "glibc")
