"""What holds only of the bundled models: they know a few things, speak English and stop."""

from __future__ import annotations

import pytest

from tests.support.served import Models, chat


@pytest.fixture(autouse=True)
def _bundled(models: Models) -> None:
    if not models.bundled:
        pytest.skip("the bundled models are not here; tiny random checkpoints served the others")


def test_the_large_model_knows_what_seven_and_five_are(server) -> None:
    reply = server.post(chat("What is 7 + 5?", model="large", max_tokens=200))
    assert "12" in reply.text
    assert reply.json["choices"][0]["finish_reason"] == "stop"


SUMS = [(2, 3), (4, 4), (9, 1), (6, 7), (8, 5), (1, 1), (7, 9), (3, 6)]


@pytest.mark.parametrize(("model", "least"), [("small", 6), ("large", 7)])
def test_sums_of_one_digit_are_right_mostly(server, model, least) -> None:
    right = 0
    for a, b in SUMS:
        reply = server.post(chat(f"What is {a} + {b}?", model=model, max_tokens=100))
        right += reply.text.rstrip(".").endswith(str(a + b))
    assert right >= least


@pytest.mark.parametrize("model", ["small", "large"])
@pytest.mark.parametrize("text", ["Hello!", "What is the capital of France?", "Who are you?"])
def test_they_answer_in_english_and_stop_by_themselves(server, model, text) -> None:
    reply = server.post(chat(text, model=model, max_tokens=300))
    assert reply.json["choices"][0]["finish_reason"] == "stop"
    words = reply.text.split()
    assert words
    assert reply.text.isascii() or sum(map(str.isascii, words)) > 0.8 * len(words)
    assert "<|" not in reply.text


def test_a_text_is_continued_with_words(server) -> None:
    asked = {"model": "large", "prompt": "Once upon a time, there was a", "max_tokens": 20}
    text = server.post(asked, "/v1/completions").json["choices"][0]["text"]
    assert text.startswith(" ")
    assert len(text.split()) > 5


def test_the_last_of_several_turns_is_answered(server) -> None:
    turns = [
        {"role": "user", "content": "What is 7 + 5?"},
        {"role": "assistant", "content": "12"},
        {"role": "user", "content": "What is 6 + 2?"},
    ]
    reply = server.post(chat("", model="large", messages=turns, max_tokens=100))
    assert "8" in reply.text
