"""YAML as released files have it: keys that stand twice, ratios that YAML would make numbers of, no code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mdmkit.errors import MdmkitError, WrongInput
from mdmkit.interop.apple_config import translate
from mdmkit.interop.apple_yaml import read_yaml

from . import released


def test_hidden_blocks_are_told(tmp_path: Path):
    table = released.config("64x64")
    hidden = "diffusion_config:\n  sampler_config:\n"
    hidden += "    loss_target_type: HA_STYLE\n    predict_variances: false\n"
    found = read_yaml(released.write_yaml(tmp_path / "c.yaml", table, twice=hidden + "lr: 7\n"))
    assert found.values == table
    lines = (tmp_path / "c.yaml").read_text().splitlines()
    again = {key: lines.index(f"{key}") + 1 for key in ("diffusion_config:", "lr: 5.0e-05")}
    assert found.twice == [
        f"diffusion_config stands in lines 1 and {lines.index('diffusion_config:', 1) + 1}; the last counts",
        f"lr stands in lines 5 and {again['lr: 5.0e-05']}; the last counts",
    ]
    assert translate(found.values, text_width=8).recipe["diffusion"]["loss_space"] == "eps"


def test_a_ratio_is_no_number_to_the_base_of_sixty(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("mixed_ratio: 2:1\nmulti_res_weights: 16:4:1\nname: 2024-01-01\nlr: 5.0e-05\nfp16: 1\n")
    assert read_yaml(path).values == {
        "mixed_ratio": "2:1",
        "multi_res_weights": "16:4:1",
        "name": "2024-01-01",
        "lr": 5e-05,
        "fp16": 1,
    }


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: &x [1]\nb: *x\n", ":2", "an alias"),
        ("a: !!python/object/apply:os.system ['touch canary']\n", ":1", "constructor for the tag"),
        ("a: [1\n", ":2", "expected ',' or ']'"),
        ("1: 2\n", ":1", "the key '1', where a word is expected"),
        ("<<: {a: 1}\n", ":1", "the key '<<'"),
        ("[" * 3000, "", "recursion"),
        ("- 1\n", "", "expected a table of settings, got list"),
        ("", "", "expected a table of settings, got NoneType"),
        ("a: \x00\n", "", "unacceptable character"),
        ("# " + "x" * (1 << 20), "", "more than 1,048,576 bytes"),
    ],
)
def test_what_is_no_table_of_plain_values_is_refused_in_one_line(
    text: str, line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(WrongInput) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}{line}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["c.yaml"]


def test_a_missing_file_and_a_missing_extra_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(WrongInput, match=r"c\.yaml: cannot be read: No such file"):
        read_yaml(tmp_path / "c.yaml")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MdmkitError, match=r"pip install 'mdmkit\[interop\]'"):
        read_yaml(tmp_path / "c.yaml")
