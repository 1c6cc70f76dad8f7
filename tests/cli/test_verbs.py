"""The verbs that read: what they print, where, and with which exit code."""

# exact messages stand on one line
# ruff: noqa: E501

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli

from mdmkit.cli import VERBS
from mdmkit.recipe import dumps, loads
from tests.cli.conftest import Cli
from tests.recipe import stand_ins
from tests.recipe.stand_ins import FULL, MINIMAL


@pytest.fixture
def full(tmp_path: Path) -> Path:
    path = tmp_path / "full.toml"
    path.write_text(FULL)
    return path


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "minimal.toml"
    path.write_text(MINIMAL)
    return path


def test_help_names_the_verbs_that_exist(cli: Cli) -> None:
    code, out, err = cli("--help")
    assert (code, err) == (0, "")
    for verb in ("check", "show", "list", "explain", "plugins", "schema"):
        assert f"  {verb:9} {VERBS[verb].help}" in out.splitlines()
    code, out, err = cli()
    assert (code, out) == (2, "")
    assert err.startswith("usage: mdmkit VERB")
    assert cli("--version").out == "mdmkit 0.1.0\n"


@pytest.mark.parametrize("verb", ["check", "show", "list", "explain", "plugins", "schema"])
def test_every_verb_has_help(cli: Cli, verb: str) -> None:
    code, out, err = cli(verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: mdmkit {verb} ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["chekc"], "mdmkit: unknown verb 'chekc'; did you mean 'check'? (known: "),
        (["check", "--bulid"], "mdmkit check: no such option: --bulid"),
        (["check"], "mdmkit check: missing argument"),
        (["list", "scheduel"], "unknown kind 'scheduel'; did you mean 'lr_schedule'? (known: attention, "),
        (["list", "sampler", "scheduel"], "unknown kind 'scheduel'; did you mean 'lr_schedule'? (known: attention, "),
        (["explain", "noise_schedule/cosin"], "unknown noise_schedule 'cosin'; did you mean 'cosine'? (known: cosine, sigmoid)"),
        (["explain", "noise/cosine"], "unknown kind 'noise' (known: attention, "),
        (["explain", "cosine"], "expected KIND/NAME or RECIPE:PATH, got 'cosine', e.g. noise_schedule/cosine"),
        (["show", "no.toml"], "no.toml: no such file"),
        (["check", "no.toml"], "no.toml: no such file"),
        (["list", "--plugin", "no_such_module"], "--plugin no_such_module: cannot be imported: ModuleNotFoundError"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(cli: Cli, arguments: list[str], line: str) -> None:
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_list(cli: Cli) -> None:
    code, out, err = cli("list", "noise_schedule")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "noise_schedule: how signal and noise mix over t",
        "  cosine   Squared cosine.",
        "  sigmoid  Sigmoid in t.",
    ]
    names = {(row["kind"], row["name"]) for row in json.loads(cli("list", "--json").out)}
    assert {(c.kind, c.name) for c in stand_ins.COMPONENTS} == names


def test_list_of_several_kinds_is_each_ones_in_their_order(cli: Cli) -> None:
    kinds = ("sampler", "noise_schedule")
    several = cli("list", *kinds)
    lines = [line.split() for line in several.out.splitlines()]  # columns are as wide as all need
    assert lines == [line.split() for kind in kinds for line in cli("list", kind).out.splitlines()]
    assert cli("list", *kinds, kinds[0]) == several
    rows = json.loads(cli("list", *kinds, "--json").out)
    assert rows == [row for kind in kinds for row in json.loads(cli("list", kind, "--json").out)]
    assert [line[0] for line in lines if line[0][-1] == ":"] == ["sampler:", "noise_schedule:"]


def test_check_says_ok_on_stdout_and_problems_on_stderr(cli: Cli, full: Path, minimal: Path) -> None:
    assert cli("check", full, minimal) == (0, f"{full}: ok\n{minimal}: ok\n", "")
    broken = full.with_name("broken.toml")
    broken.write_text(FULL.replace("seed = 3", "sead = 3").replace("steps = 25", "steps = 0"))
    code, out, err = cli("check", minimal, broken, full)
    assert (code, out) == (2, f"{minimal}: ok\n{full}: ok\n")
    assert err.splitlines() == [
        f"{broken}:7: run.sead: unknown key; did you mean 'seed'? (known: compile, device, precision, seed, start, threads)",
        f"{broken}:51: sample.steps: expected int >= 1, got 0",
    ]


def test_check_takes_overrides_and_pipes_only_when_told(cli: Cli, full: Path) -> None:
    assert cli("check", full, "--set", "run.seed=-1").code == 2
    assert cli("check", full, "--set", "run.seed=1", "--set", "train.steps=1").code == 0
    assert cli("check", full, "--set", 'data.urls="pipe:cat x"').code == 2
    assert cli("check", full, "--set", 'data.urls="pipe:cat x"', "--allow-pipe").code == 0


def test_show_prints_a_recipe_that_is_the_same(cli: Cli, full: Path) -> None:
    recipe = loads(FULL, registry=stand_ins.registry())
    code, out, err = cli("show", full)
    assert (code, err) == (0, "")
    assert out == dumps(recipe)
    shown = full.with_name("shown.toml")
    shown.write_text(out)
    assert cli("show", shown).out == out
    short = cli("show", full, "--diff").out
    assert loads(short, registry=stand_ins.registry()) == recipe
    assert "shift_power_frames" not in short


def test_explain_shows_the_keys_of_tables_inside(cli: Cli) -> None:
    lines = cli("explain", "growth/staged").out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("  stages "))
    assert lines[at + 1].startswith("    levels ")
    assert lines[at + 1].split()[1:4] == ["required", "int", ">="]


def test_explain_a_component(cli: Cli) -> None:
    code, out, err = cli("explain", "noise_schedule/cosine")
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[:2] == ["noise_schedule/cosine@1", "Squared cosine."]
    assert "owner mdmkit 0.1.0" in lines
    assert "target tests.recipe.stand_ins:built" in lines
    assert "offset 0.008 float >= 0.0 and < 1.0 keeps the start from being too clean" in lines
    assert "clamp 15.0 float or 'none' > 0.0 largest logsnr" in lines
    assert "given inner_channels, emb_dim, cond_width, device, dtype (by the program)" in [
        " ".join(line.split()) for line in cli("explain", "shell/unet@1").out.splitlines()
    ]


@pytest.mark.parametrize(
    ("path", "sets", "expected"),
    [
        ("diffusion.shift_power", [], ["diffusion.shift_power = 2.0", "from {file}:22", "type float >= 0.0", "default 1.0"]),
        ("run.threads", [], ['run.threads = "none"', "from the default", "type int or 'none' >= 1"]),
        ("run.seed", ["run.seed=9"], ["run.seed = 9", "from --set run.seed=9"]),
        ("run.precision", [], ['run.precision = "bf16"', "type str: fp32 | bf16"]),
        ("diffusion.schedule.offset", [], ["diffusion.schedule.offset = 0.01", "from {file}:21"]),
        ("diffusion.schedule.clamp", [], ["diffusion.schedule.clamp = 15.0", "from the default"]),
        ("diffusion.schedule.use", [], ['diffusion.schedule.use = "cosine@1"', "from {file}:21"]),
        ("model.attend.use", [], ['model.attend.use = "sdpa@1"', "from {file}:26"]),
        ("model.levels[1].channels[1]", [], ["model.levels[1].channels[1] = 64", "from {file}:39", "type list of int >= 1"]),
        ("model.levels[1].use", [], ['model.levels[1].use = "unet@1"', "shell unet@1 of mdmkit 0.1.0: A U-Net shell."]),
        ("data.urls", [], ['data.urls = "/data/train-{{000000..001241}}.tar"', "default required"]),
        ("text", [], ['text = {{ use = "t5@1", model = "google/flan-t5-xl", width = 512 }}', "type text_encoder or 'none'"]),
        ("sample.guidance[0].scale", [], ["sample.guidance[0].scale = 5.0", "from {file}:53"]),
    ],
)  # fmt: skip
def test_explain_a_key(cli: Cli, full: Path, path: str, sets: list[str], expected: list[str]) -> None:
    options = [part for text in sets for part in ("--set", text)]
    code, out, err = cli("explain", f"{full}:{path}", *options)
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for line in expected:
        assert line.format(file=full) in lines


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "run.sead",
            "run has no key 'sead'; did you mean 'seed'? (known: compile, device, precision, seed, start, threads)",
        ),
        ("model.levels[2]", "model.levels has 2 entries"),
        ("run[0]", "run is not a list"),
        ("run.seed.x", "run.seed is not a table"),
        (
            "data.url",
            "data has no key 'url'; did you mean 'urls'? (known: picture_share, pictures, shuffle, urls, use, "
            "workers)",
        ),
        ("a b", "expected a path like model.levels[0].channels, got 'a b'"),
    ],
)
def test_explain_a_key_that_is_not_there(cli: Cli, full: Path, path: str, message: str) -> None:
    assert cli("explain", f"{full}:{path}") == (2, "", message + "\n")


def test_every_written_key_can_be_explained(cli: Cli, full: Path) -> None:
    from mdmkit.recipe.lines import scan
    from mdmkit.recipe.problems import format_path

    for path in scan(FULL):
        code, out, err = cli("explain", f"{full}:{format_path(path)}")
        assert (code, err) == (0, ""), path
        assert f"{full}:" in out


def test_plugins(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = cli("plugins")
    assert (code, out) == (0, f"mdmkit (mdmkit 0.1.0): {len(stand_ins.COMPONENTS)} components\n")
    listed = json.loads(cli("plugins", "--json").out)["plugins"]
    assert [plugin["name"] for plugin in listed] == ["mdmkit"]
    assert "noise_schedule/cosine" in listed[0]["components"]


def test_schema_knows_every_key_and_component(cli: Cli) -> None:
    schema = json.loads(cli("schema").out)
    assert set(schema["properties"]) >= set(tomli.loads(FULL))
    assert set(schema["required"]) == {"format", "data", "model"}
    assert schema["properties"]["run"]["properties"]["seed"]["minimum"] == 0
    first, later = (
        schema["properties"]["model"]["properties"]["levels"][key] for key in ("items", "additionalItems")
    )
    assert "skip" not in str(first)
    assert "skip" in str(later)


def test_an_interrupt_exits_130(cli: Cli, full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mdmkit.cli import show

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(show, "load", interrupt)
    assert cli("show", full) == (130, "", "")


def test_a_failure_exits_1(cli: Cli, full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mdmkit.cli import show
    from mdmkit.errors import MdmkitError

    def fail(*_: object, **__: object) -> None:
        raise MdmkitError("the disk is full")

    monkeypatch.setattr(show, "load", fail)
    assert cli("show", full) == (1, "", "the disk is full\n")
