"""The five packages are ours, and none of them is shadowed by a stranger of the same name."""

import importlib
from pathlib import Path

PACKAGES = ("gateway", "cache", "cascade", "engine", "radix")
ROOT = Path(__file__).resolve().parents[2]


def test_all_five_packages_come_from_one_folder() -> None:
    homes = {Path(importlib.import_module(name).__file__ or "").parents[1] for name in PACKAGES}
    assert homes == {ROOT}


def test_no_package_hides_in_the_tests() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
