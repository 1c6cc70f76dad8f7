"""One registry of stand-ins for all tests of recipes."""

from __future__ import annotations

import pytest

from mdmkit.plugins import Registry
from tests.recipe import stand_ins


@pytest.fixture(scope="session")
def registry() -> Registry:
    return stand_ins.registry()
