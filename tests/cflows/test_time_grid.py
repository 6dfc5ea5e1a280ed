from typing import get_args

import pytest
import torch
from cases import SDES

from cflows import VPSDE
from cflows.time_grid import Spacing, time_grid

# Karras et al.'s 18 noise levels from 80 to 0.002.
EDM = [
    80, 57.585985, 40.785574, 28.374585, 19.352453, 12.910082, 8.400935, 5.315195, 3.256822,
    1.92334, 1.088171, 0.585348, 0.296442, 0.139516, 0.059947, 0.022935, 0.007528, 0.002,
]  # fmt: skip


@pytest.mark.parametrize("spacing", get_args(Spacing))
@pytest.mark.parametrize("name", SDES)
def test_falls_from_one_to_the_end(name: str, spacing: Spacing) -> None:
    t = time_grid(SDES[name][0], steps=13, t_min=1e-3, spacing=spacing)
    assert (t.shape, t.dtype) == ((14,), torch.float64)
    assert (t[0].item(), t[-1].item()) == (1.0, 1e-3)
    assert (t.diff() < 0).all()


@pytest.mark.parametrize("name", SDES)
def test_even_in_what_is_named(name: str) -> None:
    sde = SDES[name][0]
    even = {
        "time": lambda t: t,
        "quadratic": torch.sqrt,
        "log_snr": sde.log_snr,
        "karras": lambda t: (sde.marginal(t)[1] / sde.marginal(t)[0]) ** (1 / 7),
    }
    for spacing, function in even.items():
        steps = function(time_grid(sde, steps=10, t_min=0.01, spacing=spacing)).diff()
        torch.testing.assert_close(steps, steps.mean().expand(10), rtol=1e-6, atol=0)


def test_published_levels() -> None:
    """Karras et al.'s process σ = 80 t, stopped at 0.002."""
    sde = SDES["affine-edm"][0]
    t = time_grid(sde, steps=17, t_min=0.002 / 80, spacing="karras")
    assert sde.marginal(t)[1].tolist() == pytest.approx(EDM, rel=1e-5, abs=5e-7)


def test_reaches_the_data_where_that_is_finite() -> None:
    for spacing in ("time", "quadratic", "karras"):
        t = time_grid(VPSDE(), steps=5, t_min=0.0, spacing=spacing)
        assert t[-1] == 0
        assert t.isfinite().all()


@pytest.mark.parametrize(
    "keywords", [{"steps": 0}, {"t_min": 1.0}, {"t_min": -0.1}, {"t_min": 0.0, "spacing": "log_snr"}]
)
def test_what_makes_no_grid(keywords: dict) -> None:
    with pytest.raises(ValueError, match="1 step or more and t_min within"):
        time_grid(VPSDE(), **{"steps": 4, "t_min": 0.1, **keywords})
