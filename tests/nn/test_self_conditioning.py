"""Levels that are shown their own last estimate: off nothing changes, on it starts as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mdmkit.nn import NestedUNet
from mdmkit.nn.cost import level_costs

from . import nests

ROWS = (3, 2)


def nest(*on: int, dtype: torch.dtype = torch.float64) -> NestedUNet:
    """Two levels, of which some are shown their estimates."""
    torch.manual_seed(0)
    core = nests.core(self_conditioning=0 in on, dtype=dtype)
    return NestedUNet(core, [nests.shell(core, self_conditioning=1 in on, dtype=dtype)])


def off(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    return max(float((a - b).detach().abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("on", [(0,), (1,), (0, 1)])
def test_a_level_that_is_shown_its_estimate_starts_as_the_one_that_is_not(on: tuple[int, ...]):
    plain, shown = nest(), nest(*on)
    ours, theirs = dict(shown.named_parameters()), dict(plain.named_parameters())
    assert ours.keys() - theirs.keys() == {f"levels.{r}.conv_self.weight" for r in on}
    assert theirs.keys() <= ours.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), f"{name}: its seed has been moved"
    assert (plain.self_conditioning, shown.self_conditioning) == (False, True)
    nests.stir(plain)
    shown.load_state_dict(plain.state_dict(), strict=False)
    z, told = nests.pictures(ROWS), nests.told(3)
    previous = nests.pictures(ROWS, seed=7)
    assert off(shown(z, previous=previous, **told), plain(z, **told)) == 0


def test_estimates_are_heard_at_their_own_level_and_row_only():
    shown = nest(0, 1)
    nests.stir(shown)
    z, told = nests.pictures(ROWS), nests.told(3)
    without = shown(z, **told)
    zero = [torch.zeros_like(level) for level in z]
    assert off(shown(z, previous=zero, **told), without) == 0, "nothing is the same as zero"
    assert off(shown(z, previous=[None, None], **told), without) == 0
    inner, outer = nests.pictures(ROWS, seed=7)
    for previous in ([inner, None], [None, outer], [inner, outer]):
        said = shown(z, previous=previous, **told)
        changed = [(a - b).abs().amax((1, 2, 3)) > 1e-6 for a, b in zip(said, without, strict=True)]
        assert changed[1].all()
        assert changed[0][:2].all()
        # the row that stops early has no outer estimate
        assert bool(changed[0][2]) == (previous[0] is not None)
    # one row's estimate changes that row alone, which is what it is by itself
    only = torch.zeros_like(inner)
    only[1] = inner[1]
    said = shown(z, previous=[only, None], **told)
    rows = slice(1, 2)
    alone = shown([x[rows] for x in z], previous=[inner[rows], None], **nests.first(told, rows))
    for r in range(2):
        torch.testing.assert_close(said[r][rows], alone[r])
        others = [row for row in range(ROWS[r]) if row != 1]
        torch.testing.assert_close(said[r][others], without[r][others])


def test_a_grid_of_frames_hears_each_frames_estimate():
    torch.manual_seed(0)
    core = nests.core(dtype=torch.float64)
    how: dict[str, Any] = {"layout": "grid", "frames": 4, "strides": [(4, 1, 1)], "norm_groups": 4}
    shown = NestedUNet(core, [nests.shell(core, self_conditioning=True, **how)])
    nests.stir(shown)
    z = nests.draw(2, 3, 8, 12), nests.draw(2, 3, 16, 24, seed=1)
    told = nests.told(2)
    previous = torch.zeros_like(z[1])
    without = shown(z, previous=[None, previous], **told)[1]
    previous[:, :, :8, 12:] = 1.0  # the second frame
    moved = (shown(z, previous=[None, previous], **told)[1] - without).abs()
    assert moved[:, :, :8, 12:].amax((1, 2, 3)).min() > 1e-3


def test_it_learns_is_counted_and_refuses_what_it_cannot_hear():
    shown, plain = nest(0, 1), nest()
    nests.stir(shown)
    z, told = nests.pictures(ROWS), nests.told(3)
    torch.stack([said.square().mean() for said in shown(z, previous=z, **told)]).sum().backward()
    for r in range(2):
        grad = shown.get_parameter(f"levels.{r}.conv_self.weight").grad
        assert grad is not None
        assert grad.abs().sum() > 0
    sizes = [(8, 12), (16, 24)]
    ours, theirs = (level_costs(one, sizes, 2, tokens=5, cond_dim=nests.WIDTH) for one in (shown, plain))
    for r, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        weights = shown.get_parameter(f"levels.{r}.conv_self.weight").numel()
        assert own.parameters - other.parameters == weights
        assert own.flops - other.flops == 2 * weights * sizes[r][0] * sizes[r][1]
    with pytest.raises(ValueError, match="expected an estimate or None for each of 2 levels, got 1"):
        shown(z, previous=[z[0]], **told)
    core, _ = plain.parts()
    with pytest.raises(ValueError, match="an estimate is given, but the level is built without self_cond"):
        plain.get_submodule("levels.0")(z[0], told["t"], previous=z[0])
    assert core.in_channels == 3


def test_on_meta_nothing_is_real():
    torch.manual_seed(0)
    made = nests.core(self_conditioning=True, device="meta")
    assert all(p.is_meta for p in made.parameters())
