"""A directory is loaded whole or refused with what is wrong and how to mend it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.loading import (
    FAMILIES,
    BadConfig,
    BadTensors,
    BrokenFile,
    LoadError,
    MissingFile,
    UnsupportedModel,
    dummy_decoder,
    fingerprint,
    load_decoder,
    read_checkpoint,
)
from engine.sequence import SamplingParams
from tests.support.checkpoints import ARCHITECTURES, make_checkpoint
from tests.support.steps import Steps, generated, make_runner, make_sequence

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


def change(path: Path, name: str, edit: Change) -> None:
    value = json.loads((path / name).read_text())
    edit(value)
    (path / name).write_text(json.dumps(value))


def change_weights(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(path / "model.safetensors")
    edit(weights)
    save_file(weights, path / "model.safetensors")


def refusal(path: Path, kind: type[LoadError], **options: Any) -> str:
    with pytest.raises(kind) as caught:
        load_decoder(read_checkpoint(path, **options), torch.float32)
    return str(caught.value)


# ------------------------------------------------------------------ what is read


def test_sizes_come_from_the_config(path: Path) -> None:
    config = read_checkpoint(path).config
    assert (config.vocab, config.hidden, config.ffn, config.layers) == (384, 64, 96, 2)
    assert (config.heads, config.kv_heads, config.head_dim, config.context) == (4, 2, 16, 512)
    assert config.parameters == sum(
        tensor.numel() for tensor in load_file(path / "model.safetensors").values()
    )


def test_the_supported_families_are_those_that_the_tests_make() -> None:
    assert set(FAMILIES) == set(ARCHITECTURES.values())


def test_end_tokens_come_from_both_files(path: Path) -> None:
    assert read_checkpoint(path).eos == (2, 0)
    change(path, "config.json", lambda config: config.update(eos_token_id=7))
    assert read_checkpoint(path).eos == (2, 0, 7)
    (path / "generation_config.json").unlink()
    assert read_checkpoint(path).eos == (7,)


def test_defaults_are_greedy_unless_the_model_says_that_it_samples(path: Path) -> None:
    settings = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1}
    change(path, "generation_config.json", lambda given: given.update(settings))
    assert read_checkpoint(path).defaults == SamplingParams()
    change(path, "generation_config.json", lambda given: given.update(do_sample=True))
    assert read_checkpoint(path).defaults == SamplingParams(0.6, 0.9, 20, 0.1)
    change(path, "generation_config.json", lambda given: given.pop("temperature"))
    assert read_checkpoint(path).defaults.temperature == 1.0
    (path / "generation_config.json").unlink()
    assert read_checkpoint(path).defaults == SamplingParams()


def test_a_repetition_penalty_applies_to_greedy_answers_too(path: Path) -> None:
    change(path, "generation_config.json", lambda given: given.update(repetition_penalty=1.1))
    assert read_checkpoint(path).defaults == SamplingParams(repetition_penalty=1.1)


def test_old_and_new_rope_settings_mean_the_same(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    new = make_checkpoint(tmp_path / "new", rope=scaling)
    old = make_checkpoint(tmp_path / "old", rope=scaling, old_style=True)
    older = make_checkpoint(
        tmp_path / "older",
        rope={**{k: v for k, v in scaling.items() if k != "rope_type"}, "type": "llama3"},
        old_style=True,
    )
    ropes = [read_checkpoint(p).config.rope for p in (new, old, older)]
    assert ropes[0] == ropes[1] == ropes[2]
    assert ropes[0].kind == "llama3"


def test_the_context_can_be_lowered_but_not_raised(path: Path) -> None:
    assert read_checkpoint(path, context=100).config.context == 100
    assert "from 1 to the model's own, 512" in refusal(path, BadConfig, context=513)
    assert "from 1" in refusal(path, BadConfig, context=0)


def test_lowering_the_context_keeps_llama3_frequencies(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    path = make_checkpoint(tmp_path / "model", rope=rope)
    whole, lowered = read_checkpoint(path), read_checkpoint(path, context=64)
    assert whole.config.rope == lowered.config.rope


def test_a_tied_checkpoint_may_carry_its_head_and_an_old_one_its_rotary_table(path: Path) -> None:
    def add(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)

    change_weights(path, add)
    load_decoder(read_checkpoint(path), torch.float32)


def test_half_precision_weights_are_converted(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model", dtype=torch.float16)
    checkpoint = read_checkpoint(path)
    assert checkpoint.dtype == torch.float16
    decoder = load_decoder(checkpoint, torch.bfloat16)
    assert decoder.weights.embed.dtype == torch.bfloat16


def test_weights_outlive_the_files(path: Path) -> None:
    decoder = load_decoder(read_checkpoint(path), torch.float32)
    first, second = make_sequence(range(3, 9)), make_sequence(range(3, 9))
    Steps(make_runner(decoder)).generate([first], 5)
    shutil.rmtree(path)
    Steps(make_runner(decoder)).generate([second], 5)
    assert generated(first) == generated(second)


def test_dummy_weights_compute(path: Path) -> None:
    config = read_checkpoint(path).config
    same = []
    for _ in range(2):
        sequence = make_sequence(range(3, 9))
        Steps(make_runner(dummy_decoder(config, torch.float32, seed=3))).generate([sequence], 5)
        same.append(generated(sequence))
    assert same[0] == same[1]


# ------------------------------------------------------------------ the fingerprint


def test_a_fingerprint_names_content_not_place(path: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(path, tmp_path / "copy")
    assert fingerprint(path) == fingerprint(copy)
    assert len(fingerprint(path)) == 32


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_fingerprint_changes_with_every_file(path: Path, name: str) -> None:
    before = fingerprint(path)
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert fingerprint(path) != before


def test_a_file_that_appears_or_is_renamed_changes_the_fingerprint(path: Path) -> None:
    before = fingerprint(path)
    (path / "chat_template.jinja").write_text("{{ 1 }}")
    added = fingerprint(path)
    (path / "chat_template.jinja").rename(path / "chat_template.txt")
    assert len({before, added, fingerprint(path)}) == 3


# ------------------------------------------------------------------ what is refused


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert "no such directory" in refusal(tmp_path / "nowhere", MissingFile)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_not_there(path: Path, name: str) -> None:
    (path / name).unlink()
    assert name in refusal(path, MissingFile)


def test_pickled_weights_are_never_read(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    assert "convert them to safetensors" in refusal(path, MissingFile)


@pytest.mark.parametrize("text", ["{", "[]", "\x00", ""])
def test_a_config_that_is_not_json(path: Path, text: str) -> None:
    (path / "config.json").write_text(text)
    assert "config.json" in refusal(path, BrokenFile)


@pytest.mark.parametrize("depth", [100_000, 900, 500])
def test_a_config_that_nests_too_deeply(path: Path, depth: int) -> None:
    text = (path / "config.json").read_text()
    nested = '{"hidden_act": ' + "[" * depth + "]" * depth + "," + text[text.index("{") + 1 :]
    (path / "config.json").write_text(nested.replace('"hidden_act": "silu",', ""))
    with pytest.raises(LoadError, match=r"config\.json"):
        read_checkpoint(path)


def test_a_shard_that_is_not_there(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model", shards=3)
    (path / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors: missing" in refusal(path, MissingFile)


def test_an_index_without_a_map(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model", shards=2)
    (path / "model.safetensors.index.json").write_text("{}")
    assert "weight_map" in refusal(path, BrokenFile)


def test_an_index_cannot_lead_out_of_the_directory(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model", shards=1)
    other = make_checkpoint(tmp_path / "other")
    (path / "model.safetensors").unlink()
    where = {"lm_head.weight": f"../{other.name}/model.safetensors"}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert str(path / "model.safetensors") in refusal(path, MissingFile)


@pytest.mark.parametrize("keep", [4, 500, -100])
def test_weights_cut_short(path: Path, keep: int) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "not a whole safetensors file" in refusal(path, BrokenFile)


def test_a_missing_an_extra_and_a_misshapen_tensor_are_named(path: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        del weights["model.layers.1.mlp.up_proj.weight"]
        weights["model.layers.9.mlp.up_proj.weight"] = torch.zeros(1)
        weights["model.norm.weight"] = torch.zeros(63)

    change_weights(path, spoil)
    message = refusal(path, BadTensors)
    assert "model.layers.1.mlp.up_proj.weight is missing" in message
    assert "model.layers.9.mlp.up_proj.weight is not expected" in message
    assert "model.norm.weight has shape [63], not [64]" in message


def test_a_long_list_of_faults_is_cut(path: Path) -> None:
    change(path, "config.json", lambda config: config.update(num_hidden_layers=4))
    assert "and 14 more" in refusal(path, BadTensors)


def test_whole_numbers_are_not_weights(path: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["model.norm.weight"] = torch.zeros(64, dtype=torch.int8)

    change_weights(path, spoil)
    assert "stored as I8" in refusal(path, BadTensors)


@pytest.mark.parametrize("names", [["GPT2LMHeadModel"], [], None, "BertModel", [3]])
def test_another_architecture_is_named_with_those_that_work(path: Path, names: Any) -> None:
    change(path, "config.json", lambda config: config.update(architectures=names))
    message = refusal(path, UnsupportedModel)
    assert "Qwen3ForCausalLM" in message


@pytest.mark.parametrize(
    ("family", "config", "named"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ("llama", {"rope_scaling": {"type": "dynamic"}, "rope_parameters": None}, "dynamic"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "layer type"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("mistral", {"sliding_window": 256}, "sliding-window"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 256}, "sliding-window"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
    ],
)
def test_a_feature_that_is_not_computed_is_named(
    tmp_path: Path, family: str, config: dict[str, Any], named: str
) -> None:
    path = make_checkpoint(tmp_path / "model", family, config=config)
    assert named in refusal(path, UnsupportedModel)


def test_a_window_that_is_never_reached_is_no_feature(tmp_path: Path) -> None:
    wide = make_checkpoint(tmp_path / "wide", "mistral", config={"sliding_window": 512})
    unused = make_checkpoint(
        tmp_path / "unused", "qwen2", config={"use_sliding_window": False, "sliding_window": 8}
    )
    narrow = make_checkpoint(tmp_path / "narrow", "mistral", config={"sliding_window": 256})
    read_checkpoint(wide)
    read_checkpoint(unused)
    read_checkpoint(narrow, context=256)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"vocab_size": True}, "vocab_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 15}, "head_dim"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"rope_parameters": ["default"]}, "rope_parameters"),
    ],
)
def test_an_impossible_value_is_named(path: Path, config: dict[str, Any], named: str) -> None:
    change(path, "config.json", lambda given: given.update(config))
    message = refusal(path, BadConfig)
    assert named in message
    assert "config.json" in message


@pytest.mark.parametrize(
    "generation",
    [{"eos_token_id": 999}, {"eos_token_id": ["a"]}, {"do_sample": True, "temperature": -1}],
)
def test_impossible_generation_settings_are_named(path: Path, generation: dict[str, Any]) -> None:
    change(path, "generation_config.json", lambda given: given.update(generation))
    assert "generation_config.json" in refusal(path, BadConfig)
