"""What conversions between predictions of x = α x₀ + σ ε keep, for any α and σ."""

from collections.abc import Callable

import torch
from torch import Tensor

# (value, x, scale, std, source=, target=) -> value
Conversion = Callable[..., Tensor]

NAMES = ("score", "noise", "data", "velocity")
PAIRS = [(source, target) for source in NAMES for target in NAMES]
LEVELS = [(1.0, 0.05), (1.0, 5.0), (0.6, 0.8), (0.05, 1.0), (0.3, 0.2)]


def truths(x_0: Tensor, eps: Tensor, scale: Tensor, std: Tensor) -> dict[str, Tensor]:
    """What each prediction is when it is perfect; `scale` and `std` broadcast."""
    return {"score": -eps / std, "noise": eps, "data": x_0, "velocity": scale * eps - std * x_0}


def _levels(x_0: Tensor, eps: Tensor) -> list[tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]]:
    pairs = [(torch.tensor(a, dtype=x_0.dtype), torch.tensor(s, dtype=x_0.dtype)) for a, s in LEVELS]
    return [(a * x_0 + s * eps, a, s, truths(x_0, eps, a, s)) for a, s in pairs]


def agrees_with_the_parts(convert: Conversion, x_0: Tensor, eps: Tensor) -> None:
    """Every pair, from the x₀ and the ε that x was made of."""
    for x, scale, std, truth in _levels(x_0, eps):
        for source, target in PAIRS:
            found = convert(truth[source], x, scale, std, source=source, target=target)
            torch.testing.assert_close(found, truth[target], rtol=1e-10, atol=1e-11)


def there_and_back(convert: Conversion, x: Tensor, value: Tensor) -> None:
    """Any value, also one that no x₀ and ε would give."""
    for scale, std in (torch.tensor(pair, dtype=x.dtype) for pair in LEVELS):
        for source, target in PAIRS:
            there = convert(value, x, scale, std, source=source, target=target)
            back = convert(there, x, scale, std, source=target, target=source)
            torch.testing.assert_close(back, value, rtol=1e-9, atol=1e-10)


def composes(convert: Conversion, x: Tensor, value: Tensor) -> None:
    """By way of a third is the same as at once."""
    for scale, std in (torch.tensor(pair, dtype=x.dtype) for pair in LEVELS):
        for source, target in PAIRS:
            at_once = convert(value, x, scale, std, source=source, target=target)
            for between in NAMES:
                half = convert(value, x, scale, std, source=source, target=between)
                found = convert(half, x, scale, std, source=between, target=target)
                torch.testing.assert_close(found, at_once, rtol=1e-9, atol=1e-9)


def digits_lost(scale: Tensor, std: Tensor, source: str, target: str) -> Tensor:
    """The factor by which the rounding of a conversion exceeds that of its result, as documented."""
    if source in ("score", "noise") and target in ("data", "velocity"):
        return 1 + std / scale
    if source == "data":
        return 1 + scale / std
    return torch.ones_like(scale)


def float32_loses_what_is_stated(convert: Conversion, x_0: Tensor, eps: Tensor, scale: Tensor, std: Tensor) -> None:
    """Against float64 on the same rounded values, rows of unit x₀ and ε, every α and σ of `(rows,)`."""
    a, s = scale[:, None].float(), std[:, None].float()
    x = a * x_0.float() + s * eps.float()
    truth = truths(x_0.float(), eps.float(), a, s)
    for source, target in PAIRS:
        single = convert(truth[source], x, scale.float(), std.float(), source=source, target=target).double()
        exact = [v.double() for v in (truth[source], x, scale.float(), std.float())]
        double = convert(*exact, source=source, target=target)
        size = truth[target].double().square().mean(1).sqrt()
        allowed = 8 * torch.finfo(torch.float32).eps * digits_lost(scale, std, source, target) * size
        error = (single - double).abs().amax(1)
        assert (error <= allowed).all(), f"{source} to {target} is off by {(error / allowed).max():.1f} times too much"
