"""The models that bench/engine_gpu.py asks, and what others reach with them."""

from __future__ import annotations

from typing import Any

from engine.scheduler import Limits

PAGE = 16
SEED = 11
LIMITS = Limits(max_batched_tokens=8192, max_running=256)
CONTEXT = 16_384

_COMMON = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": CONTEXT}
SHAPES: dict[str, dict[str, Any]] = {
    "8b": {  # Llama-3.1-8B
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        **_COMMON,
    },
    "0.6b": {  # Qwen3-0.6B
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        **_COMMON,
    },
    "tiny": {  # to see that it runs
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 1024,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        **_COMMON,
    },
}

VLLM: dict[str, dict[str, float]] = {  # 0.26.0 on an H200
    "8b": {
        "single": 202, "batch": 6134, "shared cold": 7525, "shared warm": 8792,
        "ttft 1k": 27, "ttft 8k cold": 213, "ttft 8k warm": 19, "start": 64,
    },
    "0.6b": {
        "single": 609, "batch": 22377, "shared cold": 15261, "shared warm": 15837,
        "ttft 1k": 14, "ttft 8k cold": 32, "ttft 8k warm": 9.7,
    },
}  # fmt: skip
GOALS: dict[str, dict[str, float]] = {  # on an H200
    "8b": {
        "single": 215, "batch": 7000, "shared cold": 10000, "shared warm": 13000,
        "ttft 1k": 26, "ttft 8k cold": 205, "ttft 8k warm": 6, "start": 20,
    },
    "0.6b": {
        "single": 1200, "batch": 30000, "shared cold": 25000, "shared warm": 40000,
        "ttft 1k": 5, "ttft 8k cold": 28, "ttft 8k warm": 4,
    },
}  # fmt: skip
