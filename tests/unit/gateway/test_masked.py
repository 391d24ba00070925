"""What opens something is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.configure import BadSettings, load
from gateway.masked import masked, masked_header


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("redis://user:secret@h:1/0", "redis://…@h:1/0"),
        ("redis://:s/ec@ret@h:1/0", "redis://…@h:1/0"),
        ("redis://h:1/0?password=secret", "redis://h:1/0?password=…"),
        ("redis://h:1/0?db=2&PASSWORD=se@cret&x=1", "redis://h:1/0?db=2&PASSWORD=…&x=1"),
        ("redis://h:1?username=secret&password=secret", "redis://h:1?username=…&password=…"),
        ("unix:///run/r.sock?password=secret", "unix:///run/r.sock?password=…"),
        ("https://h/v1?api_key=secret&version=3", "https://h/v1?api_key=…&version=3"),
        ("sqlite:////home/me@work/exact.db", "sqlite:////home/me@work/exact.db"),
        ("got 'redis://h?password=secret'", "got 'redis://h?password=…'"),
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318"),
    ],
)
def test_an_address_is_shown_without_what_opens_it(address: str, shown: str) -> None:
    assert masked(address) == shown


def test_of_a_header_only_its_source_is_shown() -> None:
    assert masked_header("env:KEY") == "env:KEY"
    assert masked_header("sk-secret") == "…"


@pytest.mark.parametrize(
    "text",
    [
        '[ledger]\nstore = "redis://h:1/0?password=secret"\n',
        '[traces]\nendpoint = "grpc://me:secret@h:1"\n',
        '[models.far]\nkind = "openai"\nbase_url = "ftp://h/v1?api_key=secret"\n',
        '[models.far]\nkind = "openai"\nheaders = {X-Key = "secret", X-Other = 5}\n',
        '[cache.exact]\nttl_s = "redis://me:secret@h"\n',
    ],
)
def test_a_message_about_a_wrong_setting_repeats_no_secret(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sluice.toml"
    path.write_text(text)
    with pytest.raises(BadSettings) as raised:
        load(path)
    assert "secret" not in str(raised.value)
