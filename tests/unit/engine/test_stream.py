from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.contract import Delta, TokenLogprob
from engine.stream import ChoiceStream, Detokeniser, StopFinder, token_logprob
from engine.text import Pieces
from tests.support.tokenizers import KINDS, make_tokenizer

TEXTS = st.text(alphabet="ab cé世界😀▁<>|\n", max_size=30) | st.text(max_size=20)


def pieces(kind: str) -> Pieces:
    return Pieces(make_tokenizer(kind))


def detokenise(kind: str, ids: list[int]) -> tuple[list[str], str]:
    """What each token added, and what was left at the end."""
    detokeniser = Detokeniser(pieces(kind), fresh=True)
    return [detokeniser.add(token) for token in ids], detokeniser.flush()


# ----------------------------------------------------------------------- detokenising


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
@example(text=" hello  world ")
@example(text="👨‍👩‍👧‍👦 你好 ééé")
@example(text="<think>")
def test_deltas_joined_are_the_decoded_whole(kind: str, text: str) -> None:
    tokenizer = make_tokenizer(kind)
    ids = tokenizer.encode(text).ids
    added, rest = detokenise(kind, ids)
    assert "".join(added) + rest == tokenizer.decode(ids)


@given(st.lists(st.integers(0, 500), max_size=30))
def test_of_byte_level_tokens_any_sequence_at_all_decodes_alike(ids: list[int]) -> None:
    tokenizer = make_tokenizer("byte_level")
    ids = [token % tokenizer.get_vocab_size() for token in ids]
    added, rest = detokenise("byte_level", ids)
    assert "".join(added) + rest == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["byte_level", "fallback"])
def test_half_a_character_is_never_shown(kind: str) -> None:
    ids = make_tokenizer(kind).encode("x🦀y").ids
    added, rest = detokenise(kind, ids)
    assert len(ids) >= 5, "the crab must be several tokens, or the test says nothing"
    assert not any("�" in text for text in added)
    assert "🦀" in "".join(added)
    assert rest == ""


def test_an_incomplete_end_is_shown_once_as_a_replacement() -> None:
    ids = make_tokenizer("byte_level").encode("🦀").ids[:-1]
    assert detokenise("byte_level", ids) == ([""] * len(ids), "�")


def test_special_tokens_and_ids_beyond_the_vocabulary_are_no_text() -> None:
    tokenizer = make_tokenizer("byte_level")
    ids = [*tokenizer.encode("a").ids, tokenizer.token_to_id("<|im_end|>"), 99_999]
    added, rest = detokenise("byte_level", ids)
    assert "".join(added) + rest == "a"


@pytest.mark.parametrize("kind", ["fallback", "legacy", "metaspace"])
def test_an_answer_of_its_own_has_no_first_space_but_a_continuation_keeps_it(kind: str) -> None:
    ids = make_tokenizer(kind).encode("hello world").ids
    for fresh, expected in ((True, "hello world"), (False, " hello world")):
        detokeniser = Detokeniser(pieces(kind), fresh=fresh)
        assert "".join(map(detokeniser.add, ids)) == expected


# ----------------------------------------------------------------------- stop strings


def find(stops: tuple[str, ...], parts: list[str]) -> tuple[list[str], bool]:
    finder = StopFinder(stops)
    sent = []
    for part in parts:
        sent.append(finder.add(part))
        if finder.found:
            return sent, True
    return [*sent, finder.flush()], False


def test_a_stop_string_across_pieces_is_cut_off() -> None:
    assert find(("\n\nUser",), ["The end.\n", "\nUs", "er: and"]) == (["The end.", "", ""], True)


def test_only_what_may_become_a_stop_string_is_kept_back() -> None:
    assert find(("END",), ["so E", "N", "d", "s"]) == (["so ", "", "ENd", "s", ""], False)


def test_what_was_kept_back_is_sent_at_the_end() -> None:
    assert find(("END",), ["the EN"]) == (["the ", "EN"], False)


def test_an_empty_stop_string_stops_nothing() -> None:
    assert find(("",), ["abc"]) == (["abc", ""], False)


@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple),
)
def test_how_a_text_is_cut_does_not_change_where_it_stops(
    parts: list[str], stops: tuple[str, ...]
) -> None:
    sent, found = find(stops, parts)
    by_char, found_by_char = find(stops, list("".join(parts)))
    assert ("".join(sent), found) == ("".join(by_char), found_by_char)
    assert found == any(stop in "".join(parts) for stop in stops)
    assert not any(stop in "".join(sent) for stop in stops)


@given(st.text("ab", max_size=12), st.text("ab", min_size=1, max_size=4))
def test_nothing_is_kept_back_that_cannot_become_a_stop_string(text: str, stop: str) -> None:
    finder = StopFinder((stop,))
    held = ""
    for char in text:
        held = held + char
        held = held[len(finder.add(char)) :]
        if finder.found:
            return
        assert stop.startswith(held)


# ----------------------------------------------------------------------- deltas


def run(
    text: str, stops: tuple[str, ...] = (), kind: str = "byte_level"
) -> tuple[list[Delta], list[int]]:
    """The deltas of a text's tokens, each with a log-probability; and the tokens."""
    ids = make_tokenizer(kind).encode(text).ids
    stream = ChoiceStream(0, pieces(kind), stops)
    deltas = []
    for token in ids:
        deltas.append(stream.add(token, token_logprob(pieces(kind), token, -1.0)))
        if stream.stopped:
            break
    deltas.append(stream.finish())
    return [delta for delta in deltas if delta is not None], ids


@given(TEXTS, st.sampled_from([(), ("a b",), ("😀", "c")]))
def test_tokens_and_logprobs_go_with_the_text_that_they_made(
    text: str, stops: tuple[str, ...]
) -> None:
    deltas, ids = run(text, stops)
    tokens = [token for delta in deltas for token in delta.token_ids]
    sent = "".join(delta.payload for delta in deltas)
    logprobs: list[TokenLogprob] = [entry for delta in deltas for entry in delta.logprobs]
    assert tokens == ids[: len(tokens)]
    assert [p.token_bytes for p in logprobs] == [pieces("byte_level").own_bytes(t) for t in tokens]
    made = b"".join(p.token_bytes for p in logprobs).decode(errors="replace")
    assert made.startswith(sent)
    if not any(stop in text for stop in stops):
        assert tokens == ids
        assert sent == text
    else:
        assert sent == text[: min(text.find(stop) for stop in stops if stop in text)]
        dropped_last = b"".join(p.token_bytes for p in logprobs[:-1]).decode(errors="ignore")
        assert len(dropped_last) < len(sent) or not tokens


def test_a_token_waits_for_the_rest_of_its_character() -> None:
    deltas, ids = run("🦀!")
    assert [delta.payload for delta in deltas] == ["🦀", "!"]
    assert deltas[0].token_ids == tuple(ids[:-1])


def test_tokens_of_the_stop_string_are_not_delivered() -> None:
    deltas, ids = run("hello world, hello there", (" there",))
    assert "".join(delta.payload for delta in deltas) == "hello world, hello"
    delivered = [token for delta in deltas for token in delta.token_ids]
    assert make_tokenizer("byte_level").decode(delivered) == "hello world, hello"
    assert len(delivered) < len(ids)


def test_a_stop_string_that_begins_inside_a_token_keeps_that_token() -> None:
    deltas, ids = run("hello", ("lo",))
    assert "".join(delta.payload for delta in deltas) == "hel"
    assert [t for delta in deltas for t in delta.token_ids] == ids == [ids[0], ids[-1]]


def test_bytes_that_are_no_text_alone_are_shown_by_value() -> None:
    ids = make_tokenizer("byte_level").encode("🦀").ids
    shown = token_logprob(pieces("byte_level"), ids[0], -0.1, ((ids[0], -0.1), (5, -2.0)))
    assert shown.token.startswith("bytes:\\xf0")
    assert shown.token_bytes.startswith(b"\xf0")
    assert [top.logprob for top in shown.top] == [-0.1, -2.0]


def test_a_special_token_has_its_name_among_logprobs() -> None:
    token = make_tokenizer("byte_level").token_to_id("<|im_end|>")
    assert token_logprob(pieces("byte_level"), token, -0.1).token == "<|im_end|>"
