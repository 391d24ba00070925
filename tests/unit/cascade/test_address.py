"""Private networks are out of reach unless the settings say otherwise."""

from __future__ import annotations

import pytest

from cascade.address import Addresses, AddressRefused
from tests.support.recordings import FakeClock


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/v1",
        "http://10.0.0.1/v1",
        "http://169.254.169.254/latest",
        "http://192.168.1.1",
        "http://[::1]/v1",
        "http://[fe80::1]/v1",
        "http://[::ffff:10.0.0.1]/v1",
        "http://0.0.0.0/v1",
        "http://100.64.0.1/v1",
        "http://[::10.0.0.1]/v1",
        "http://[64:ff9b::a00:1]/v1",
        "http://[2002:a00:1::]/v1",
        "http://224.0.0.1/v1",
    ],
)
def test_a_private_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(AddressRefused, match="allow_private"):
        Addresses(url)
    Addresses(url, allow_private=True)


@pytest.mark.parametrize(
    "url", ["ftp://example.org", "example.org/v1", "http://", "", "http://0177.0.0.1/v1"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(AddressRefused, match="not an http or https URL"):
        Addresses(url)


def test_a_url_with_a_password_is_refused_without_being_told() -> None:
    with pytest.raises(AddressRefused, match="api_key_env") as refused:
        Addresses("https://us:hunter2@example.org/v1")
    assert "hunter2" not in str(refused.value)


def test_a_public_address_within_an_ipv6_one_is_reached() -> None:
    Addresses("http://[64:ff9b::808:808]/v1")


class Names:
    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        return self.answers[min(self.asked, len(self.answers)) - 1]


async def test_a_name_is_pinned_to_the_checked_address() -> None:
    names = Names(["1.2.3.4"])
    place = await Addresses("https://api.example.org:8443/v1/", resolve=names).place("/x")
    assert str(place.url) == "https://1.2.3.4:8443/v1/x"
    assert (place.host, place.name) == ("api.example.org:8443", "api.example.org")


async def test_a_name_with_any_private_address_is_refused() -> None:
    names = Names(["1.2.3.4", "10.0.0.1"])
    with pytest.raises(AddressRefused, match=r"10\.0\.0\.1"):
        await Addresses("https://api.example.org", resolve=names).place("/x")


async def test_a_name_that_turns_private_later_is_refused_then() -> None:
    names, clock = Names(["1.2.3.4"], ["127.0.0.1"]), FakeClock()
    addresses = Addresses("http://sly.example.org", resolve=names, clock=clock)
    await addresses.place("/x")
    clock.now += 29
    await addresses.place("/x")
    assert names.asked == 1
    clock.now += 2
    with pytest.raises(AddressRefused):
        await addresses.place("/x")


async def test_a_name_without_an_address_cannot_be_reached() -> None:
    with pytest.raises(OSError, match="no address"):
        await Addresses("http://nowhere.example.org", resolve=Names([])).place("/x")


async def test_an_ipv6_address_is_written_in_brackets() -> None:
    place = await Addresses("https://six.example.org", resolve=Names(["2606:4700::1"])).place("/x")
    assert place.url.host == "2606:4700::1"
    assert str(place.url) == "https://[2606:4700::1]/x"


async def test_each_path_has_its_own_url_and_follows_the_name_to_another_address() -> None:
    names, clock = Names(["1.2.3.4"], ["1.2.3.5"]), FakeClock()
    addresses = Addresses("http://moves.example.org/v1", resolve=names, clock=clock)
    urls = [str((await addresses.place(path)).url) for path in ("/a", "/b", "/a")]
    assert urls == ["http://1.2.3.4/v1/a", "http://1.2.3.4/v1/b", "http://1.2.3.4/v1/a"]
    clock.now += 31
    assert str((await addresses.place("/a")).url) == "http://1.2.3.5/v1/a"
