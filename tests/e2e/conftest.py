"""One server for all end-to-end tests, and what each of them must leave behind: an idle one."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator

import pytest
from openai import OpenAI

from tests.support.program import Program, pages_of, running
from tests.support.served import ALICE, Models, find_models

_served_by: pytest.StashKey[str] = pytest.StashKey()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Models:
    found = find_models(tmp_path_factory.mktemp("models"))
    pytestconfig.stash[_served_by] = found.what
    return found


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if (what := config.stash.get(_served_by, None)) is not None:
        terminalreporter.write_line(f"end-to-end tests were served by {what}")


@pytest.fixture(scope="session")
def program(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The server that the tests share. Use `server`, which also looks after each test."""
    with running(tmp_path_factory.mktemp("server"), models.settings) as one:
        yield one
        assert one.stop() == 0, one.logged()[-4000:]
        assert_nothing_broke(one.logged())


def assert_nothing_broke(logged: str) -> None:
    """A caller's mistake is never logged as an error, however strange it is."""
    for sign in ('"level":"error"', '"status":500', "Traceback"):
        assert sign not in logged, logged[-4000:]


@pytest.fixture(scope="session")
def all_pages(program: Program) -> dict[str, int]:
    return pages_of(program.state())


@pytest.fixture
def server(program: Program, all_pages: dict[str, int]) -> Iterator[Program]:
    """The shared server. Whatever a test did to it, afterwards it is alive, it has nothing left
    to do, every page is free or cached, and nothing in it broke. (Its log is written a moment
    late: what a test breaks may be found at the end of the next.)"""
    seen = len(program.logged())
    yield program
    assert program.alive, program.logged()[-4000:]
    assert pages_of(program.wait_idle()) == all_pages
    assert_nothing_broke(program.logged()[seen:])


@pytest.fixture
def client(server: Program) -> Iterator[OpenAI]:
    """OpenAI's SDK, which retries nothing, so that every error is seen."""
    with OpenAI(base_url=f"{server.base_url}/v1", api_key=ALICE, max_retries=0) as one:
        yield one


@pytest.fixture(scope="session")
def question() -> Callable[[], str]:
    """Questions that nobody has asked before, different from their first word on: no test meets
    another's cached answer or prefix."""
    numbers = itertools.count(1)
    mark = uuid.uuid4().hex[:6]
    return lambda: f"{next(numbers)} {mark}: what comes next in this story?"
