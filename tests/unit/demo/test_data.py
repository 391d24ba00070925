"""Encoding and packing: which tokens count, and that documents stay whole."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from demo import data
from demo.data import ASSISTANT, END, LOSS, PAD, PROMPT, START, USER


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file("demo/small/tokenizer.json")


def chat(source: str, *texts: str) -> data.Row:
    roles = ("user", "assistant") * len(texts)
    messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    return {"messages": messages, "source": source}


def test_special_tokens_are_the_first_five(tokenizer: Tokenizer) -> None:
    assert [tokenizer.id_to_token(i) for i in range(5)] == data.SPECIALS
    assert tokenizer.get_vocab_size() == data.VOCABULARY


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("2024").tokens == ["2", "0", "2", "4"]


def test_loss_counts_on_what_the_assistant_says(tokenizer: Tokenizer) -> None:
    (document,) = data.encode(tokenizer, [chat("dolly", "Hi", "Hello")])
    assert document.ids[0] == USER
    at = document.ids.index(ASSISTANT)
    assert document.flags[0] == START | PROMPT
    assert all(f & PROMPT for f in document.flags[: at + 1])
    assert all(f == LOSS for f in document.flags[at + 1 :])
    assert document.ids[-1] == END


def test_a_tasks_question_never_counts(tokenizer: Tokenizer) -> None:
    (document,) = data.encode(tokenizer, [chat("tasks", "1 + 1 =", "2")])
    at = document.ids.index(ASSISTANT)
    assert document.flags[: at + 1] == [START] + [0] * at


def test_rows_hold_whole_documents_and_padding_never_counts() -> None:
    documents = [data.Encoded([7] * n, [LOSS | START] + [LOSS] * (n - 1)) for n in (3, 4, 2, 6)]
    ids, flags = data.pack(documents, width=8)
    assert ids.shape == flags.shape == (2, 8)
    assert ids[0].tolist() == [7] * 7 + [PAD]
    assert flags[0].tolist() == [5, 1, 1, 5, 1, 1, 1, START]
    assert int(((flags & LOSS) != 0).sum()) == 15
    assert not np.any((ids == PAD) & ((flags & LOSS) != 0))


def test_a_long_document_is_split() -> None:
    ids, flags = data.pack([data.Encoded([7] * 10, [5] + [1] * 9)], width=8)
    assert ids.tolist() == [[7] * 8, [7] * 2 + [PAD] * 6]
    assert flags[1, 0] & START


def test_prose_is_cut_after_whole_sentences() -> None:
    text = "One sentence here. " * 40
    cut = data.concise(text)
    assert len(cut) <= data.PROSE_CHARS
    assert cut.endswith("here.")
    assert data.concise("Short.") == "Short."


def test_rows_made_elsewhere_under_another_name_are_left_out() -> None:
    assert data.prepared(chat("smalltalk", "Who are you?", "I'm a small assistant.")) is None
    assert data.prepared(chat("persona-chat", "Hi", "Hi (user 1 name)")) is None
    assert data.prepared(chat("dolly", "Hi", "Hello")) is not None


def test_shards_are_read_compressed_and_plain(tmp_path: Path) -> None:
    plain = tmp_path / "x.jsonl"
    plain.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert [r["text"] for r in data.read_rows(plain)] == ["a", "b"]
    assert next(data.read_rows(Path("tests/data/demo-scrap/text-scrap.jsonl.zst")))["text"]
