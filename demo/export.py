"""Weights -> a Hugging Face directory that transformers and our engine load as it is.

bfloat16, the embedding stored once (tied), files of at most 45 MB with an index when there are
several. config.json is written last: whoever waits for a model waits for that file.

usage: python -m demo.export CHECKPOINT.pt tokenizer.json OUT_DIR
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo.data import END, PAD, SPECIALS
from demo.model import Llama, Shape

SHARD_BYTES = 45_000_000

# developer and tool messages have no tokens of their own: they read as system and user
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] in ['system', 'developer'] -%}{{ '<|system|>' }}"
    "{%- elif message['role'] == 'assistant' -%}{{ '<|assistant|>' }}"
    "{%- else -%}{{ '<|user|>' }}{%- endif -%}"
    "{{ message['content'] + '<|end|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def config(s: Shape) -> dict[str, Any]:
    """config.json of LlamaForCausalLM."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": s.vocabulary,
        "hidden_size": s.width,
        "intermediate_size": s.inner,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "head_dim": s.head,
        "hidden_act": "silu",
        "max_position_embeddings": s.context,
        "rms_norm_eps": s.eps,
        "rope_theta": s.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": s.theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": END,
        "pad_token_id": PAD,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def tokenizer_config(s: Shape) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIALS[END],
        "pad_token": SPECIALS[PAD],
        "bos_token": None,
        "unk_token": None,
        "model_max_length": s.context,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def generation_config() -> dict[str, Any]:
    return {
        "do_sample": False,
        "bos_token_id": None,
        "eos_token_id": END,
        "pad_token_id": PAD,
        "max_new_tokens": 512,
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf8")


def shards(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Weights in order, cut before SHARD_BYTES is passed."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, w in weights.items():
        if size + w.nbytes > SHARD_BYTES:
            parts.append({})
            size = 0
        parts[-1][name] = w
        size += w.nbytes
    return parts


def write_weights(model: Llama, out: Path) -> None:
    """model.safetensors, or numbered shards with an index."""
    weights = {n: p.detach().cpu().bfloat16().contiguous() for n, p in model.named_parameters()}
    parts = shards(weights)
    if len(parts) == 1:
        save_file(weights, out / "model.safetensors", {"format": "pt"})
        return
    names = [f"model-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, out / name, {"format": "pt"})
    where = {n: name for name, part in zip(names, parts, strict=True) for n in part}
    total = {"total_size": sum(w.nbytes for w in weights.values())}
    write_json(out / "model.safetensors.index.json", {"metadata": total, "weight_map": where})


def write_tokenizer(s: Shape, tokenizer: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if tokenizer.resolve() != (out / "tokenizer.json").resolve():
        shutil.copyfile(tokenizer, out / "tokenizer.json")
    write_json(out / "tokenizer_config.json", tokenizer_config(s))
    write_json(out / "generation_config.json", generation_config())


def export(model: Llama, tokenizer: Path, out: Path) -> None:
    """The whole directory."""
    write_tokenizer(model.shape, tokenizer, out)
    write_weights(model, out)
    write_json(out / "config.json", config(model.shape))


def load(model: Llama, folder: Path) -> None:
    """Weights of an exported directory into a model of the same shape."""
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    model.load_state_dict(weights)


def main(checkpoint: str, tokenizer: str, out: str) -> None:
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = Llama(Shape(**saved["shape"]))
    model.load_state_dict(saved["model"])
    export(model, Path(tokenizer), Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:4])
