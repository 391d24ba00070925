"""LangChain's ChatOpenAI against the real server: what many applications are built on."""

from __future__ import annotations

import warnings

import openai
import pytest

with warnings.catch_warnings():
    # What LangChain's own imports deprecate is not ours to mend.
    warnings.simplefilter("ignore")
    langchain_openai = pytest.importorskip("langchain_openai")

from tests.support.served import ALICE


@pytest.fixture
def chain(server):
    """Answers of up to 12 tokens, greedy."""
    return langchain_openai.ChatOpenAI(
        base_url=f"{server.base_url}/v1",
        api_key=ALICE,
        model="small",
        max_tokens=12,
        temperature=0,
        max_retries=0,
        stream_usage=True,
    )


def test_invoke_answers_with_text_and_usage(chain, question) -> None:
    answer = chain.invoke([("system", "Be brief."), ("human", question())])
    assert isinstance(answer.content, str)
    assert answer.response_metadata["model_name"] == "small"
    usage = answer.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert 0 < usage["output_tokens"] <= 12


def test_stream_says_what_invoke_says(chain, question) -> None:
    text = question()
    chunks = list(chain.stream(text))
    assert "".join(chunk.content for chunk in chunks) == chain.invoke(text).content
    assert sum(c.usage_metadata["output_tokens"] for c in chunks if c.usage_metadata) > 0


def test_batch_answers_in_order(chain, question) -> None:
    texts = [question() for _ in range(4)]
    answers = chain.batch(texts)
    assert [a.content for a in answers] == [chain.invoke(text).content for text in texts]


async def test_the_async_side_says_the_same(chain, question) -> None:
    text = question()
    streamed = "".join([chunk.content async for chunk in chain.astream(text)])
    assert streamed == (await chain.ainvoke(text)).content


def test_an_error_arrives_as_the_sdks_own(chain, question) -> None:
    with pytest.raises(openai.NotFoundError, match="Models here"):
        chain.bind(model="gpt-17").invoke(question())
