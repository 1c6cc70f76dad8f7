"""Where the recorded numbers are not, tests that need them are skipped, or fail where they must not be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .golden import golden_case, off, tolerance


def test_missing_numbers_are_skipped_or_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MDMKIT_GOLDEN", str(tmp_path))
    monkeypatch.delenv("MDMKIT_REQUIRE_GOLDEN", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"no reference numbers at .*nested2"):
        golden_case("nested2")
    monkeypatch.setenv("MDMKIT_REQUIRE_GOLDEN", "1")
    with pytest.raises((pytest.fail.Exception, pytest.skip.Exception)) as caught:
        golden_case("nested2")
    assert isinstance(caught.value, pytest.fail.Exception)
    assert "nested2 (set MDMKIT_GOLDEN)" in str(caught.value)
    (tmp_path / "nested2").mkdir()
    assert golden_case("nested2") == tmp_path / "nested2"


def test_ci_asks_for_the_numbers():
    script = (Path(__file__).parents[1] / ".ci" / "run").read_text(encoding="utf-8")
    assert script.index("export MDMKIT_REQUIRE_GOLDEN=1") < script.index("eval ")


def test_distances_are_in_units_of_the_recorded_spread():
    recorded = torch.tensor([0.0, 2.0])
    assert off(recorded + torch.tensor([0.0, 0.5]), recorded) == pytest.approx(0.5 / 2**0.5)
    assert (tolerance(1e-9), tolerance(1e-3)) == (5e-5, 4e-3)
