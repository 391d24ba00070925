"""From labels to a promise: what is found, what is refused, what is kept in the file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cascade.calibrate import (
    Aim,
    Calibration,
    TooFewLabels,
    calibrate,
    first_look,
    retest,
)
from cascade.features import question
from cascade.gain import ModelFileError
from cascade.judge import AFTER, Answered, judge
from cascade.labels import Labelled, LabelsError, first_tokens, read_labels
from cascade.looks import Table
from cascade.policy import read_policy, write_policy
from cascade.promise import Promise, Region
from cascade.routes.learned import Quality
from engine.contract import Call, Json
from tests.support.labelled import labelled
from tests.support.routing import chat, question_of

AIM = Aim(Promise(0.05), hold_tokens=8)


@pytest.fixture(scope="module")
def found() -> Calibration:
    return calibrate(labelled(1200), AIM)


def by_name(calibration: Calibration) -> dict[str, float]:
    return {line.name: line.large_share for line in calibration.table}


def routed(route: Quality, rows: list[Labelled], *, whole: bool = False) -> tuple[float, float]:
    """(loss against always-large, share of large calls) of a route on labelled traffic."""
    lost, large = 0.0, 0
    for row in rows:
        asked = replace(question_of(row.call), whole=whole)
        choice = route.before(asked)
        for tokens in (route.hold_tokens, None):
            if choice.judged:
                assert row.answer is not None
                seen = first_tokens(row.answer, tokens)
                choice = route.after(asked, (judge(row.call, question(row.call), seen),))
        large += choice.model == "large"
        lost += (row.large - row.small) * (choice.model == "small")
    return lost / len(rows), large / len(rows)


def test_the_promise_holds_on_fresh_traffic_at_the_share_that_was_told(
    found: Calibration,
) -> None:
    """Decided call by call, as in service. 4,000 requests: ± 0.5 points is noise."""
    lost, large = routed(found.route, labelled(4000, seed=9))
    assert found.route.cut.promised
    assert lost <= 0.05
    assert large == pytest.approx(found.route.cut.large_share, abs=0.05)
    assert large < 0.5


def late(n: int, seed: int = 0) -> list[Labelled]:
    """Answers that begin alike, and give themselves away at the end."""
    rows = []
    for row in labelled(n, seed):
        assert row.answer is not None
        begun = replace(row.answer, logprobs=(-0.1,) * 8 + row.answer.logprobs[8:])
        rows.append(replace(row, answer=begun))
    return rows


def test_whole_answers_have_a_cut_of_their_own_that_keeps_the_promise_too() -> None:
    found = calibrate(late(1200), AIM)
    route = found.route
    assert route.whole is not None
    assert route.cut.promised
    assert route.whole.cut.promised
    fresh = late(4000, seed=9)
    lost, large = routed(route, fresh)
    lost_whole, large_whole = routed(route, fresh, whole=True)
    assert max(lost, lost_whole) <= 0.05
    assert large == pytest.approx(route.cut.large_share, abs=0.05)
    assert large_whole == pytest.approx(route.whole.cut.large_share, abs=0.05)
    assert large_whole < large - 0.03, "their ends tell more"
    assert "where they are not" in found.summary()


def test_whole_answers_are_not_judged_where_they_are_not_to_be_waited_for() -> None:
    rows = late(400)
    assert calibrate(rows, replace(AIM, whole_tokens=0)).route.whole is None
    assert calibrate(rows, replace(AIM, hold_tokens=None)).route.whole is None, "all are whole"


def test_an_answer_longer_than_is_waited_for_counts_as_the_large_models() -> None:
    route = calibrate(late(400), replace(AIM, whole_tokens=19)).route
    assert route.whole is not None
    assert not route.whole.cut.promised or route.whole.cut.large_share > 0.95


def test_a_document_is_held_whole_in_calibration_as_in_service() -> None:
    asked = Json('{"type":"json_object"}')
    rows = [replace(row, call=replace(row.call, response_format=asked)) for row in late(20)]
    table = Table.of(rows, AIM.view, None)
    assert not table.going.any()
    assert (table.inputs["after"][:, AFTER.index("finished")] == 1.0).all()


def test_the_table_orders_the_routers_as_they_deserve(found: Calibration) -> None:
    shares = by_name(found)
    assert shares["oracle"] < shares["router + judge"] < shares["router"] < shares["random"]
    assert shares["router + judge"] <= found.route.cut.large_share < shares["random"]


def test_the_summary_says_what_is_promised_and_on_what(found: Calibration) -> None:
    said = found.summary()
    assert "90 % confidence" in said
    assert "5 points" in said
    assert f"{found.route.cut.labels} labels" in said
    assert found.notes() == ()


def test_without_answers_the_decision_is_before_token_1() -> None:
    rows = labelled(800, text=False)
    route = calibrate(rows, AIM).route
    assert route.scorer.judge is None
    assert not route.before(question_of(chat("What is it?"))).judged


def test_the_embedding_is_used_where_there_is_one() -> None:
    rows = labelled(400)

    def embed(calls: object) -> np.ndarray:
        vectors = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    aim = Aim(Promise(0.05), embedder="mini")
    route = calibrate(rows, aim, embed=embed).route
    assert "embedding" in route.needs
    assert route.scorer.route.embedder == "mini"


def test_too_few_labels_promise_nothing_and_say_what_it_takes() -> None:
    result = calibrate(labelled(60), Aim(Promise(0.01)))
    assert not result.route.cut.promised
    assert "No promise" in result.summary()
    assert "at least 462" in result.summary()
    assert result.route.before(question_of(chat("What?"))).model == "large"


def test_a_handful_is_refused() -> None:
    with pytest.raises(TooFewLabels, match="40 or more"):
        calibrate(labelled(39), AIM)


def test_a_conversation_gives_one_label_to_the_test() -> None:
    result = calibrate(labelled(1200, turns=4), AIM)
    assert result.route.cut.labels == 150
    assert result.fitted_on == 600


def test_the_same_labels_give_the_same_policy() -> None:
    rows = labelled(400)
    first, second = (write_policy("a", "f", calibrate(rows, AIM).route) for _ in range(2))
    assert first == second


def test_fresh_labels_where_they_matter_move_the_cut_and_keep_the_promise(
    found: Calibration,
) -> None:
    traffic = labelled(4000, seed=5)
    looks = first_look(found.route, [row.call for row in traffic])
    region = Region.at_most(found.route.cut.threshold + 0.05, looks)
    inside = [row for row, look in zip(traffic, looks, strict=True) if look <= region.top]
    bolder = retest(found.route, inside, region)
    assert bolder.cut.promised
    assert found.route.cut.threshold < bolder.cut.threshold <= region.top
    lost, _ = routed(bolder, labelled(4000, seed=9))
    assert lost <= 0.05


def test_what_is_never_kept_needs_no_label() -> None:
    """Code is 40 % of the traffic and none of the labels; the share of large calls counts it."""
    route = calibrate(labelled(800, text=False), AIM).route
    traffic = labelled(2000, seed=5, text=False)
    looks = first_look(route, [row.call for row in traffic])
    region = Region.at_most(0.45, looks)
    inside = [row for row, look in zip(traffic, looks, strict=True) if look <= region.top]
    assert not any("```" in row.call.messages[0].text for row in inside)
    found = retest(route, inside[:300], region)
    assert found.cut.promised
    assert found.cut.large_share == pytest.approx(0.4, abs=0.06)


def test_progress_is_told_and_ends() -> None:
    told: list[tuple[str, float]] = []
    calibrate(labelled(200), AIM, progress=lambda step, share: told.append((step, share)))
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert told[-1] == ("done", 1.0)


def test_models_that_do_not_differ_are_pointed_out() -> None:
    rows = [row for row in labelled(600) if row.small >= row.large]
    assert "no better" in calibrate(rows, AIM).notes()[0]


# ------------------------------------------------------------------ files


def test_a_stored_policy_decides_as_before(found: Calibration) -> None:
    text = write_policy("acme", "weights-1", found.route)
    policy = read_policy(text)
    assert (policy.tenant, policy.fingerprint) == ("acme", "weights-1")
    assert policy.key == f"quality/acme/{policy.version}"
    assert policy.route.whole == found.route.whole
    for asked in ("Mend ```x```", "What is it?"):
        question = question_of(chat(asked))
        assert policy.route.before(question) == found.route.before(question)


def test_a_policy_without_a_promise_survives_the_file(found: Calibration) -> None:
    nothing = replace(found.route.cut, threshold=-math.inf, promised=False)
    policy = read_policy(write_policy("a", "f", replace(found.route, cut=nothing)))
    assert policy.route.cut.threshold == -math.inf
    assert not policy.route.cut.promised


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format":"sluice-policy/2"}', '{"format":"x"}'])
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(ModelFileError, match="sluice calibrate"):
        read_policy(text)


def test_labels_are_read_in_every_form() -> None:
    rows = read_labels(
        [
            '{"messages":[{"role":"user","content":"Hi"}],"small":{"score":0.5,"text":"x",'
            '"logprobs":[-1],"finish":"length"},"large":true,"conversation":"c"}',
            "",
            '{"prompt":"Hi","small":false,"large":1}',
        ]
    )
    assert rows[0].answer == Answered("x", (-1.0,), "length")
    assert (rows[0].small, rows[0].large, rows[0].conversation) == (0.5, 1.0, "c")
    assert (rows[1].small, rows[1].answer, rows[1].call.kind) == (0.0, None, "text")
    assert rows[1].conversation == "line 3"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ('{"prompt":"x","small":1}', "'large' is missing"),
        ('{"small":1,"large":1}', "'messages' is missing"),
        ('{"messages":[],"small":1,"large":1}', "messages is empty"),
        ('{"prompt":"x","small":2,"large":1}', "0 … 1"),
        ('{"prompt":"x","small":NaN,"large":1}', "0 … 1"),
        ('{"prompt":"x","small":"good","large":1}', 'small.score must be a number, not "good"'),
        ("[1]", "a row is a JSON object"),
        ('{"prompt":"x","small":{},"large":1}', "small.score is missing"),
        ('{"prompt":"x","small":1,"large":null}', "'large' is missing"),
        ('{"prompt":7,"small":1,"large":1}', "prompt must be text, not 7"),
        ('{"messages":"Hi","small":1,"large":1}', 'messages is "Hi"; it must be a list'),
        ('{"messages":["Hi"],"small":1,"large":1}', 'a message needs a "role"'),
        ('{"messages":[{"role":"me","content":"x"}],"small":1,"large":1}', "system, developer"),
        ('{"messages":[{"role":"user"}],"small":1,"large":1}', 'needs a "content" of text'),
        (
            '{"messages":[{"role":"user","content":[{"type":"image_url"}]}],"small":1,"large":1}',
            'needs a "content" of text',
        ),
        ('{"prompt":"x","small":{"score":1,"text":3},"large":1}', "small.text must be text"),
        (
            '{"prompt":"x","small":{"score":1,"text":"a","logprobs":3},"large":1}',
            "small.logprobs must be a list",
        ),
        (
            '{"prompt":"x","small":{"score":1,"text":"a","logprobs":["b"]},"large":1}',
            "small.logprobs must be a number",
        ),
        (
            '{"prompt":"x","small":{"score":1,"text":"a","finish":"eos"},"large":1}',
            "small.finish must be one of",
        ),
        ('{"prompt":"x","small":1,"large":{"score":1,"tokens":"9"}}', "large.tokens must be"),
        ('{"prompt":"x","small":1,"large":1,"weight":"2"}', "weight must be a number"),
    ],
)
def test_a_wrong_row_is_named(line: str, said: str) -> None:
    with pytest.raises(LabelsError, match=said) as raised:
        read_labels([line])
    assert str(raised.value).startswith("line 1: ")
    assert str(raised.value).endswith("Mend the line or take it out")


def test_of_an_answer_that_was_graded_again_the_last_word_counts() -> None:
    rows = [f'{{"prompt":"x","small":{n % 2},"large":1,"answer_id":"a"}}' for n in range(3)]
    other = '{"prompt":"y","small":1,"large":1,"answer_id":"b"}'
    read = read_labels([*rows[:2], other, rows[2], other.replace(',"answer_id":"b"', "")])
    assert [(row.call.prompt, row.small) for row in read] == [("y", 1.0), ("x", 0.0), ("y", 1.0)]


def test_rows_that_share_their_right_answer_are_rows_of_their_own() -> None:
    rows = [f'{{"prompt":"{n} + 1","small":1,"large":1,"answer":"12"}}' for n in range(3)]
    assert len(read_labels(rows)) == 3


def test_a_message_in_parts_is_read_as_its_text() -> None:
    parts = '[{"type":"text","text":"Hello "},{"type":"text","text":"you"}]'
    (row,) = read_labels(
        [f'{{"messages":[{{"role":"user","content":{parts}}}],"small":1,"large":1}}']
    )
    assert row.call.messages[0].text == "Hello you"


def test_the_judge_sees_only_what_was_held_back() -> None:
    whole = Answered("abcdefghij", tuple([-0.1] * 10), "stop")
    seen = first_tokens(whole, 4)
    assert (seen.text, len(seen.logprobs), seen.finish) == ("abcd", 4, None)
    assert first_tokens(whole, None) is whole
    assert first_tokens(whole, 10) is whole


def test_the_curve_is_drawn(found: Calibration, tmp_path: Path) -> None:
    plot = pytest.importorskip("cascade.plot", reason="matplotlib is not installed").plot
    plot(found, tmp_path / "curve.png", "acme")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_policy_file_is_plain_json(found: Calibration) -> None:
    assert json.loads(write_policy("a", "f", found.route))["format"] == "sluice-policy/2"


def test_what_was_volunteered_teaches_and_does_not_test() -> None:
    rows = labelled(1000)
    told = [replace(row, volunteered=True) for row in labelled(500, seed=9)]
    told = [replace(row, conversation=f"told {row.conversation}") for row in told]
    alone, both = calibrate(rows, AIM), calibrate(rows + told, AIM)
    assert both.route.cut.labels == alone.route.cut.labels == 500
    assert both.fitted_on == alone.fitted_on + 500


def test_nothing_but_volunteered_labels_cannot_be_calibrated_on() -> None:
    with pytest.raises(TooFewLabels, match="drawn at random"):
        calibrate([replace(row, volunteered=True) for row in labelled(400)], AIM)


def test_what_is_drawn_seldom_counts_for_more() -> None:
    """Code is a tenth of these labels and four tenths of the traffic."""
    every = labelled(4000)
    code = [row for row in every if "```" in question(row.call)]
    plain = [row for row in every if "```" not in question(row.call)]
    drawn = [replace(row, weight=10.0) for row in code[::10]] + plain
    true, found = calibrate(every, AIM), calibrate(drawn, AIM)
    assert found.small == pytest.approx(true.small, abs=0.06)
    unweighed = calibrate([replace(row, weight=1.0) for row in drawn], AIM)
    assert unweighed.small > true.small + 0.1
    assert found.route.cut.promised
    lost, _ = routed(found.route, labelled(3000, seed=3))
    assert lost <= AIM.promise.epsilon


@pytest.mark.parametrize("weight", ["0", "-1", "Infinity"])
def test_a_weight_that_weighs_nothing_is_refused(weight: str) -> None:
    line = f'{{"prompt": "x", "small": 1, "large": 1, "weight": {weight}}}'
    with pytest.raises(LabelsError, match="a weight must be above 0"):
        read_labels([line])


def test_what_has_no_vector_is_left_to_the_large_model_and_counted_so() -> None:
    rows = labelled(1200)

    def embed(calls: Sequence[Call]) -> NDArray[np.float32]:
        """Every other question is too long, as it were."""
        seen = [int("".join(filter(str.isdigit, question(call)))) % 2 for call in calls]
        return np.array([[1.0, 0.0] if even else [np.nan, np.nan] for even in seen], np.float32)

    found = calibrate(rows, replace(AIM, embedder="e"), embed=embed)
    assert found.route.cut.promised
    assert found.route.cut.large_share >= 0.45
    assert 250 <= found.fitted_on <= 350
    assert found.route.cut.labels == 600
