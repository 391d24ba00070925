"""What of a remote model needs no server."""

from __future__ import annotations

import pytest

from cascade.remote import SecretMissing, secret


def test_a_secret_comes_from_the_environment_that_is_given() -> None:
    assert secret("OUR_KEY", {"OUR_KEY": " sk-1\n"}) == "sk-1"


@pytest.mark.parametrize("environ", [{}, {"OUR_KEY": ""}, {"OUR_KEY": "  "}])
def test_a_missing_secret_names_its_variable(environ: dict[str, str]) -> None:
    with pytest.raises(SecretMissing, match="OUR_KEY is not set"):
        secret("OUR_KEY", environ)
