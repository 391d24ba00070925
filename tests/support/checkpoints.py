"""Tiny random checkpoints of every supported family, with a real trained tokenizer.

Written straight with safetensors and tokenizers, without transformers: a directory is there within
a few milliseconds, and the tests that hold the engine against transformers prove that the names and
the config are the ones a real checkpoint has. The weights are wide enough (std 2.5/√fan-in)
that greedy answers differ from prompt to prompt and ties do not happen.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"
TURN = "<|im_start|>"
TURN_END = "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
FAMILIES = tuple(ARCHITECTURES)

_TEXT = (
    "A gateway stands between those who ask and those who answer. It keeps what was said before, "
    "and says it again when the same thing is asked. Water flows through a sluice only when the "
    "gate is open; a good keeper opens it no wider than the field below can drink. "
    "What is the capital of France? The capital of France is Paris. "
    "Add 12 and 30: the sum is 42. Count from 1 to 9: 1 2 3 4 5 6 7 8 9. "
    "The user asks, the assistant answers, the system watches. Hello! How are you today? "
)


@functools.cache
def train_tokenizer(vocab: int) -> str:
    """A byte-level BPE of at most `vocab` entries, as tokenizer.json's text. Digits stand alone."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END, TURN, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    return str(tokenizer.to_str(pretty=True))


def make_checkpoint(
    path: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    vocab: int = 384,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    ffn: int = 96,
    context: int = 512,
    tie: bool = True,
    dtype: torch.dtype = torch.float32,
    rope: dict[str, Any] | None = None,
    old_style: bool = False,
    shards: int = 1,
    config: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
) -> Path:
    """Write a loadable Hugging Face directory to `path` and return it.

    `rope`: rope settings without theta (transformers 5's `rope_parameters`; with `old_style`,
    transformers 4's `rope_theta` + `rope_scaling`). `config`, `generation`: keys to overlay.
    """
    path.mkdir(parents=True, exist_ok=True)
    settings = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tie,
        "attention_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "use_cache": True,
        **_rope(rope, old_style),
        ("torch_dtype" if old_style else "dtype"): str(dtype).removeprefix("torch."),
        **({"mlp_bias": False} if family == "llama" else {}),
        **({"sliding_window": None} if family != "llama" else {}),
        **(config or {}),
    }
    _write_json(path / "config.json", settings)
    _write_json(
        path / "generation_config.json",
        {"bos_token_id": 0, "eos_token_id": [2, 0], "do_sample": False, **(generation or {})},
    )
    (path / "tokenizer.json").write_text(train_tokenizer(vocab), encoding="utf-8")
    _write_json(
        path / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END,
            "eos_token": TURN_END,
            "pad_token": END,
            "chat_template": CHAT_TEMPLATE,
            "model_max_length": context,
        },
    )
    _write_weights(path, _weights(settings, seed, dtype), shards)
    return path


def _rope(rope: dict[str, Any] | None, old_style: bool) -> dict[str, Any]:
    theta = 10000.0
    if old_style:
        return {"rope_theta": theta, "rope_scaling": rope}
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **(rope or {})}}


def _weights(settings: dict[str, Any], seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: _draw(name, shape, generator).to(dtype).contiguous()
        for name, shape in _shapes(settings)
    }


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return noise * 0.1
    if len(shape) == 1:  # a norm's weight
        return 1.0 + noise * 0.1
    if "embed" in name:
        return noise * 0.5  # small beside what the layers add: else tied models repeat one token
    return noise * 2.5 / shape[1] ** 0.5


def _shapes(settings: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, vocab, ffn = (settings[k] for k in ("hidden_size", "vocab_size", "intermediate_size"))
    head = settings["head_dim"]
    q, kv = settings["num_attention_heads"] * head, settings["num_key_value_heads"] * head
    family = settings["model_type"]
    biased = family == "qwen2" or settings["attention_bias"]
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(settings["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        for part, rows in (("q", q), ("k", kv), ("v", kv)):
            yield f"{name}.self_attn.{part}_proj.weight", (rows, hidden)
            if biased:
                yield f"{name}.self_attn.{part}_proj.bias", (rows,)
        yield f"{name}.self_attn.o_proj.weight", (hidden, q)
        if settings["attention_bias"] and family != "qwen2":
            yield f"{name}.self_attn.o_proj.bias", (hidden,)
        if family == "qwen3":
            yield f"{name}.self_attn.q_norm.weight", (head,)
            yield f"{name}.self_attn.k_norm.weight", (head,)
        yield f"{name}.mlp.gate_proj.weight", (ffn, hidden)
        yield f"{name}.mlp.up_proj.weight", (ffn, hidden)
        yield f"{name}.mlp.down_proj.weight", (hidden, ffn)
        yield f"{name}.input_layernorm.weight", (hidden,)
        yield f"{name}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not settings["tie_word_embeddings"]:
        yield "lm_head.weight", (vocab, hidden)


def _write_weights(path: Path, weights: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(weights)
    where: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: weights[name] for name in names[shard::shards]}
        save_file(part, path / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(part, file))
    _write_json(path / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
