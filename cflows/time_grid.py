"""Times from noise to data: where a solver with so many steps stops on its way from t = 1 to t_min."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from cflows.sde import SDE

Spacing = Literal["time", "quadratic", "log_snr", "karras"]
RHO = 7.0


def time_grid(sde: SDE, *, steps: int, t_min: float, spacing: Spacing = "time") -> Float[Tensor, " times"]:
    """1 = t_0 > t_1 > ... > t_N = t_min, evenly spaced in t or in a function of σ̃ = σ(t)/α(t).

    `time`: t; `quadratic`: √t; `log_snr`: λ = -2 log σ̃; `karras`: σ̃^(1/7).

    References:
        Song et al., 2021, section 4 (time); Song et al., "Denoising diffusion implicit models", 2021, app. D.2
        (quadratic); Lu et al., "DPM-Solver", 2022, section 3.3 (log-SNR); Karras et al., "Elucidating the design space
        of diffusion-based generative models", 2022, eq. 5 (karras, ρ = 7).

    Checked by tests/cflows/test_time_grid.py.

    Args:
        sde: the noising process.
        steps: N, 1 or more.
        t_min: last time, within [0, 1); above 0 for `log_snr`, where λ would be infinite.
        spacing: as above.

    Returns:
        The N + 1 times, float64, on the CPU: a solver takes each over in its own dtype.

    Raises:
        ValueError: no steps, t_min outside its range, or an unknown spacing.

    Example:
        >>> from cflows import VPSDE
        >>> time_grid(VPSDE(), steps=4, t_min=0.2).numpy().round(12).tolist()
        [1.0, 0.8, 0.6, 0.4, 0.2]
    """
    check_grid("time_grid", steps=steps, t_min=t_min, spacing=spacing)
    share = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    ends = torch.tensor([1.0, t_min], dtype=torch.float64)
    if spacing == "time":
        t = 1 - share * (1 - t_min)
    elif spacing == "quadratic":
        t = (1 - share * (1 - t_min**0.5)).square()
    elif spacing == "log_snr":
        low, high = sde.log_snr(ends)
        t = sde.time(low + share * (high - low))
    else:
        high, low = torch.exp(-0.5 / RHO * sde.log_snr(ends))
        t = sde.time(-2 * RHO * (high + share * (low - high)).log())
    t[0], t[-1] = 1.0, t_min  # exact, whatever the rounding on the way
    return t


def check_grid(owner: str, *, steps: int, t_min: float, spacing: Spacing) -> None:
    """Refuses what makes no grid.

    Raises:
        ValueError: names the owner and what is wrong.
    """
    if spacing not in get_args(Spacing):
        raise ValueError(f"{owner}'s spacing must be one of {', '.join(get_args(Spacing))}, but is {spacing!r}.")
    if steps < 1 or not 0 <= t_min < 1 or (spacing == "log_snr" and t_min == 0):
        raise ValueError(
            f"{owner} needs 1 step or more and t_min within [0, 1), above 0 with spacing='log_snr', but has "
            f"steps={steps}, t_min={t_min} and spacing={spacing!r}."
        )
