"""The bundled directories load in transformers as they are, chat, and end by themselves."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODELS = ("demo/small", "demo/large")
SUMS = (("What is 7 + 5?", "12"), ("What is the capital of France?", "Paris"))


@pytest.mark.parametrize("folder", MODELS)
@pytest.mark.parametrize(("question", "answer"), SUMS)
def test_transformers_loads_it_and_gets_a_sensible_answer(
    folder: str, question: str, answer: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=30)[0, inputs["input_ids"].shape[1] :]
    assert out[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(out, skip_special_tokens=True) == answer


@pytest.mark.parametrize("folder", MODELS)
def test_our_training_model_and_transformers_give_the_same_logits(folder: str) -> None:
    from demo.export import load
    from demo.model import SHAPES, Llama, document_mask

    ours = Llama(SHAPES[Path(folder).name])
    load(ours, Path(folder))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(5, 12_288, (1, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        a, b = ours(ids, document_mask(torch.ones(1, 64))), theirs(input_ids=ids).logits
    assert torch.allclose(a, b, atol=2e-3)


def test_both_share_one_tokenizer_and_template() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        small, large = (Path(folder, name).read_bytes() for folder in MODELS)
        assert small == large


def test_the_template_is_plain_to_see_in_tokenizer_config() -> None:
    config = json.loads(Path("demo/small/tokenizer_config.json").read_text())
    assert "add_generation_prompt" in config["chat_template"]


def test_files_stay_within_their_limits() -> None:
    sizes = [p.stat().st_size for folder in MODELS for p in Path(folder).iterdir()]
    assert max(sizes) <= 50 * 10**6
    weights = [p.stat().st_size for f in MODELS for p in Path(f).glob("*.safetensors")]
    assert sum(weights) <= 100 * 10**6
