"""Each battery notices what it is there for: components that break one promise, and the message for it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from mdmkit.plugins import Component, Registry, load_registry
from mdmkit.testing import BATTERIES, ConformanceError, check_component

REGISTRATIONS = [
    ("Mutable", "Schedule", "can be changed after they are made"),
    ("Undocumented", "Schedule", "have no docstring"),
    ("NotAttrs", "Schedule", "must be an attrs class"),
    ("Helpless", "Schedule", "field 'scale' of .* has no help text"),
    ("OutOfBounds", "Schedule", "default of field 'scale' is -1.0, outside ge=0.0"),
    ("broken_targets:Heavy", "Schedule", "settings module broken_targets imports torch"),
    ("Plain", "Absent", "importing the target broken_targets:Absent raises AttributeError"),
    (
        "Scaled",
        "OtherDefault",
        "default of 'scale' is 2.0 in the settings, 3.0 in broken_targets:OtherDefault",
    ),
    ("Scaled", "OtherType", "default of 'scale' is 2.0 in the settings, 2 in broken_targets:OtherType"),
    ("Scaled", "TakesMore", "takes 'width', which the settings lack"),
    ("Scaled", "Schedule", "settings have 'scale', which target broken_targets:Schedule does not take"),
    ("Required", "OtherDefault", "takes 'scale', which the settings lack"),
    ("Plain", "NoScales", "has no 'alpha_sigma'"),
]

OBJECTS = [
    ("noise_schedule", "Plain", "RisingSchedule", r"must fall with t .* rises from -8 at t = 0 to"),
    ("noise_schedule", "Plain", "StandingSchedule", r"hardly falls between t = 0.25 and t = 0.75"),
    (
        "noise_schedule",
        "Plain",
        "SquaredSchedule",
        r"ln\(alpha\^2 / sigma\^2\) of alpha_sigma\(t\) is off logsnr",
    ),
    ("noise_schedule", "Plain", "NoisyAtZero", r"alpha_sigma\(0\) is \(0.999832, 0.0183\), expected"),
    ("noise_schedule", "Plain", "InfiniteEnds", r"logsnr\(t\) is not finite at t = 0; clamp it"),
    ("noise_schedule", "Plain", "DropsTheShift", r"is off logsnr by"),
    ("weighting", "Plain", "NegativeWeight", r"weight is negative at logsnr = -20"),
    ("weighting", "Plain", "SpacelessWeight", r"space is 'velocity', expected one of x0, eps, v, flow"),
    ("weighting", "Plain", "NormalisedWeight", r"the weight at a logsnr depends on the others beside it"),
    ("time_sampler", "Plain", "OtherDensity", r"draws do not follow density: KS distance"),
    ("time_sampler", "Plain", "UnnormalisedDensity", r"density integrates to 2, expected 1"),
    (
        "time_sampler",
        "Plain",
        "LooksAtNeighbours",
        r"the time at a position depends on the positions beside it",
    ),
    ("time_sampler", "Plain", "RemembersDraws", r"the same key draws other times the second time"),
    ("loss", "Plain", "never_zero", r"loss is 1 where prediction equals target, expected 0"),
    ("loss", "Plain", "mean_only", r"loss of \(2, 3, 4, 6\) has shape \(\)"),
    ("loss", "Plain", "root_loss", r"no finite gradient where inputs agree"),
    ("loss", "Scaled", "never_zero", r"a function's settings are its keyword-only arguments"),
    ("resolution_sampler", "Plain", "MoreThanAll", r"sum to 1.5, expected 1"),
    ("resolution_sampler", "Plain", "ForgetfulShares", r"shares depend on more than \(seed, step\)"),
    (
        "resolution_sampler",
        "Overlapping",
        "MoreThanAll",
        r"settings overlap what the program gives .*: levels",
    ),
    ("growth", "Plain", "ShrinkingGrowth", r"lowers levels: its stages have \[2, 1\]"),
    ("growth", "Plain", "SplitGrowth", r"says that it preserves and that its stages are `apart`"),
    ("growth", "Plain", "ClingingGrowth", r"carries \d+ tensors, but it says that it is `apart`"),
    ("growth", "Plain", "LosingGrowth", r"leaves out levels\.0"),
    ("block", "Plain", "RandomBlock", r"must start as the identity"),
    ("block", "Plain", "DeafBlock", r"does not use the embedding"),
    ("block", "Plain", "Schedule", r"does not take 'device', which the program gives a block"),
    ("attention", "Plain", "ignores_mask", r"with a mask \(B, S\): attention over nothing must give zero"),
    ("attention", "Plain", "unscaled", r"with no mask is off softmax"),
    ("attention", "Plain", "nothing_is_nan", r"attention over nothing must give zero, got nan"),
    ("text_encoder", "Plain", "BatchWideText", r"depend on the captions beside it"),
    ("sampler", "Plain", "stays", r"with a perfect denoiser and 1 steps level 0 ends .* away from x0"),
    ("sampler", "Plain", "averages", r"a picture at level 0 depends on the pictures beside it"),
    ("spacing", "Plain", "misses_the_end", r"1 steps end at t = 0.5, expected 0"),
    ("spacing", "Plain", "rises", r"times of 2 steps must fall: 0.5 is followed by 0.75"),
    ("guidance", "Scaled", "OffsetGuidance", r"changes a denoiser whose two predictions agree"),
    ("guidance", "Scaled", "OneTooMuch", r"at scale 1 is not the conditional prediction"),
    ("threshold", "Plain", "squashes", r"changes a picture that is in \[-1, 1\] already"),
    ("threshold", "Plain", "over_the_batch", r"a picture depends on the pictures beside it"),
    ("dataset", "Plain", "ForgetfulDataset", r"sample\(1000000\) differs the second time"),
    ("dataset", "Plain", "FloatDataset", r"image is float32 \(16, 24, 3\), expected uint8"),
    ("metric", "Plain", "NaNMetric", r"result\(\)\['score'\] is nan, expected a finite float"),
    ("metric", "Plain", "LastBatchMetric", r"result\(\)\['mean'\] depends on the batches"),
    ("metric", "Plain", "BlindMetric", r"needs either update\(pictures, captions\), .* or examine"),
    ("logger", "Plain", "SilentLogger", r"leave nothing in the run folder"),
    ("logger", "Plain", "ClosesOnce", r"close\(\) for the second time raises ValueError"),
    ("optimizer", "Scaled", "Ascent", r"40 steps on a quadratic raise it: 14 to"),
    ("lr_schedule", "Plain", "TooMuch", r"factor\(1\) is 2.0, expected 0 .. 1"),
    ("lr_schedule", "Plain", "ZeroFirst", r"factor\(0\) is 0: the first step would change nothing"),
]


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "broken"))


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry(env={"MDMKIT_PLUGINS": ""})


def component(kind: str, settings: str, target: str) -> Component:
    module, _, name = settings.rpartition(":")
    cls = getattr(importlib.import_module(module or "broken_settings"), name)
    return Component(kind, f"broken.{target}", cls, f"broken_targets:{target}")


@pytest.mark.parametrize(
    ("settings", "target", "message"), REGISTRATIONS, ids=[f"{s}-{t}" for s, t, _ in REGISTRATIONS]
)
def test_a_wrong_registration_is_named(settings: str, target: str, message: str, registry: Registry) -> None:
    with pytest.raises(ConformanceError, match=message) as caught:
        check_component(component("noise_schedule", settings, target), registry=registry)
    assert str(caught.value).startswith(f"noise_schedule broken.{target}: ")


@pytest.mark.parametrize(
    ("kind", "settings", "target", "message"), OBJECTS, ids=[f"{k}-{t}" for k, _, t, _ in OBJECTS]
)
def test_a_broken_promise_is_named(
    kind: str, settings: str, target: str, message: str, registry: Registry
) -> None:
    with pytest.raises(ConformanceError, match=message):
        check_component(component(kind, settings, target), registry=registry)


def test_required_settings_need_samples(registry: Registry) -> None:
    lost = Component("dataset", "broken.lost", importlib.import_module("broken_settings").Required, None)
    with pytest.raises(ConformanceError, match="target is missing: a dataset is given seed, resolution"):
        check_component(lost, registry=registry)
    required = importlib.import_module("broken_settings").Required
    mirror = Component("lr_schedule", "broken.required", required, None)
    with pytest.raises(ConformanceError, match=r"has required settings \(path\); give samples"):
        check_component(mirror, registry=registry)


def test_every_kind_has_a_battery() -> None:
    kinds = importlib.import_module("mdmkit.plugins").KINDS
    assert set(BATTERIES) == set(kinds)
