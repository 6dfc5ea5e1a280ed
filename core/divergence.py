"""Divergence ∇·f = tr ∂f/∂x of a vector field, exact or from random probes, in the same call that evaluates the field.

A probe v gives vᵀ(∂f/∂x)v by one vector-Jacobian product; its mean over probes with E[v vᵀ] = I is the trace
(Hutchinson, 1990). Probes are drawn once and stay fixed along an ODE solve: a fresh draw at each step would make the
right-hand side rough and the step control useless.

Every estimator returns one column per independent estimate, so that the caller can integrate each of them and read a
standard error off their spread.
"""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from core.rng import Rng, for_all_rows, randn

Rows = Float[Tensor, "rows ..."]  # (rows, *event)
Probes = Float[Tensor, "k rows ..."]
Columns = Float[Tensor, "rows columns"]
Field = Callable[[Tensor], Tensor]
VJP = Callable[[Tensor], Tensor]
ProbeLaw = Literal["rademacher", "gaussian", "sphere"]


def value_and_vjp(field: Field, x: Rows) -> tuple[Tensor, VJP]:
    """f(x), and the map from v `(k, *f(x).shape)` to vᵀ ∂f/∂x, `(k, rows, *event)`.

    Both stay in the autograd graph where gradients are enabled; under `torch.no_grad()` no graph outlives the call.

    Raises:
        RuntimeError: under `torch.inference_mode()`, where every derivative would be 0.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("derivatives need autograd, which torch.inference_mode() takes away: use torch.no_grad().")
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if create_graph and x.requires_grad else x.detach().requires_grad_()
        value = field(x)

    return (value if create_graph else value.detach()), partial(_vjp, value, x)


def _vjp(value: Tensor, x: Tensor, v: Tensor) -> Tensor:
    if not value.requires_grad:
        return x.new_zeros(len(v), *x.shape)
    create_graph = torch.is_grad_enabled()
    options = {"retain_graph": True, "create_graph": create_graph, "materialize_grads": True}
    if len(v) == 1 or _has_group_norm(value, x):
        return torch.stack([torch.autograd.grad(value, x, vector, **options)[0] for vector in v])
    return torch.autograd.grad(value, x, v, is_grads_batched=True, **options)[0]


def _has_group_norm(value: Tensor, x: Tensor) -> bool:
    """Whether there is one between x and f(x).

    Torch does not batch its second derivative: it fails or, where sizes happen to agree, is wrong in silence.
    """
    # Not what made x: along an ODE that is every step before.
    nodes, seen = [value.grad_fn], {x.grad_fn}
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            if node.name().startswith("NativeGroupNorm"):
                return True
            seen.add(node)
            nodes += [parent for parent, _ in node.next_functions]
    return False


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise inner products of `(k, rows, *event)`, as `(rows, k)`."""
    return (a * b).flatten(2).sum(2).T


class Divergence(abc.ABC):
    """How to get f(x) and ∇·f(x) together."""

    exact: bool

    @property
    @abc.abstractmethod
    def columns(self) -> int:
        """Number of independent estimates that one call returns."""

    @abc.abstractmethod
    def draw(self, x: Rows, generator: Rng) -> Probes:
        """Probes for one solve, `(k, rows, *event)`: every row has its own."""

    @abc.abstractmethod
    def __call__(self, field: Field, x: Rows, probes: Probes) -> tuple[Rows, Columns]:
        """f(x) and independent estimates of ∇·f(x), `(rows, columns)`, whose mean is the estimate."""


@dataclass(frozen=True, kw_only=True)
class ExactDivergence(Divergence):
    """∇·f = Σᵢ ∂fᵢ/∂xᵢ by D vector-Jacobian products.

    Checked by tests/core/test_divergence.py::test_exact_equals_jacobian_trace.

    Attributes:
        chunk: products taken in one batched call; bounds memory to about chunk × rows activations.

    Example:
        >>> divergence = ExactDivergence()
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> value, div = divergence(lambda x: x**2, x, divergence.draw(x, None))
        >>> div.tolist()  # 2 x₁ + 2 x₂
        [[6.0]]
    """

    chunk: int = 16
    exact = True
    columns = 1

    def draw(self, x: Rows, generator: Rng) -> Probes:
        """No probes: an empty tensor."""
        return x.new_zeros(0, *x.shape)

    def __call__(self, field: Field, x: Rows, probes: Probes) -> tuple[Rows, Columns]:
        """f(x) and its exact divergence, `(rows, 1)`."""
        value, vjp = value_and_vjp(field, x)
        rows, size = x.shape[0], math.prod(x.shape[1:])
        units = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *x.shape[1:])
        diagonals = [
            _dot(vjp(e.expand(len(e), rows, *x.shape[1:])), e.expand(len(e), rows, *x.shape[1:]))
            for e in units.split(self.chunk)
        ]
        return value, torch.cat(diagonals, 1).sum(1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class Hutchinson(Divergence):
    """∇·f = E[vᵀ (∂f/∂x) v], E[v vᵀ] = I: `probes` vector-Jacobian products batched in one call.

    With M = ∂f/∂x symmetric, one Rademacher probe has variance 2 Σ_{i≠j} Mᵢⱼ², one Gaussian probe 2 ‖M‖²_F, never less,
    and one on the sphere of radius √D, 2 (D ‖M‖²_F - (tr M)²)/(D + 2), less than the Gaussian one.

    References:
        Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1990.
        Grathwohl et al., "FFJORD", 2019, eq. 7.

    Checked by tests/core/test_divergence.py (unbiased, variance in closed form).

    Attributes:
        probes: number of probes a row, 1 or more; a standard error needs 2.
        distribution: `rademacher` (signs), `gaussian`, or `sphere` (uniform on the sphere of radius √D).
    """

    probes: int = 1
    distribution: ProbeLaw = "rademacher"
    exact = False

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ValueError(f"Hutchinson needs 1 probe or more, but probes is {self.probes}.")
        if self.distribution not in ("rademacher", "gaussian", "sphere"):
            raise ValueError(f"Hutchinson's distribution is rademacher, gaussian or sphere, not {self.distribution!r}.")

    @property
    def columns(self) -> int:
        """One a probe."""
        return self.probes

    def draw(self, x: Rows, generator: Rng) -> Probes:
        """Probes `(probes, rows, *event)`."""
        return draw_probes(self.probes, x, self.distribution, generator)

    def __call__(self, field: Field, x: Rows, probes: Probes) -> tuple[Rows, Columns]:
        """f(x) and one estimate per probe, `(rows, probes)`."""
        value, vjp = value_and_vjp(field, x)
        return value, _dot(vjp(probes), probes)


@dataclass(frozen=True, kw_only=True)
class HutchPlusPlus(Divergence):
    """∇·f = tr(Qᵀ J Q) + E[vᵀ (I - QQᵀ) J (I - QQᵀ) v] with Q an orthonormal basis of the range of Jᵀ S.

    A third of the products sketches the range, a third takes its trace exactly, a third estimates the rest. Unbiased
    for every Q; exact once probes/3 ≥ D.

    References:
        Meyer, Musco, Musco, Woodruff, "Hutch++: optimal stochastic trace estimation", 2021, algorithm 1.

    Checked by tests/core/test_divergence.py (unbiased, exact on low rank).

    Attributes:
        probes: vector-Jacobian products a row in all, a multiple of 3.
    """

    probes: int = 12
    exact = False

    def __post_init__(self) -> None:
        if self.probes < 3 or self.probes % 3:
            raise ValueError(f"HutchPlusPlus needs a multiple of 3 probes, but probes is {self.probes}.")

    @property
    def columns(self) -> int:
        """One a residual probe."""
        return self.probes // 3

    def draw(self, x: Rows, generator: Rng) -> Probes:
        """Sketch S and probes G stacked, `(2 probes / 3, rows, *event)`."""
        return draw_probes(2 * self.probes // 3, x, "rademacher", generator)

    def __call__(self, field: Field, x: Rows, probes: Probes) -> tuple[Rows, Columns]:
        """f(x) and one estimate per residual probe, `(rows, probes / 3)`."""
        value, vjp = value_and_vjp(field, x)
        sketch, g = probes.chunk(2)
        # Constant in the gradient: the estimate is unbiased for every Q, and QR has none where the rank is low.
        q, _ = torch.linalg.qr(vjp(sketch).detach().flatten(2).permute(1, 2, 0))  # (rows, D, columns)
        basis = q.permute(2, 0, 1).reshape(q.shape[2], *x.shape)
        captured = _dot(vjp(basis), basis).sum(1, keepdim=True)
        flat = g.flatten(2)
        residual = (flat - torch.einsum("rdj,rej,kre->krd", q, q, flat)).reshape(g.shape)
        return value, captured + _dot(vjp(residual), residual)


def draw_probes(count: int, x: Rows, distribution: ProbeLaw, generator: Rng) -> Probes:
    """Random directions v with E[v vᵀ] = I, `(count, rows, *event)`: every row has its own.

    Args:
        count: directions a row.
        x: rows `(rows, *event)`, of which shape, dtype and device are taken.
        distribution: `rademacher` (signs), `gaussian`, or `sphere` (uniform on the sphere of radius √D).
        generator: source of the randomness.
    """
    size, one = (count, *x.shape), for_all_rows(generator, owner="a trace probe")
    if distribution == "rademacher":
        return torch.randint(2, size, generator=one, device=x.device).to(x.dtype) * 2 - 1
    v = randn(size, one, like=x)
    if distribution == "gaussian":
        return v
    radius = math.sqrt(math.prod(x.shape[1:]))
    return v * (radius / torch.linalg.vector_norm(v, dim=tuple(range(2, v.ndim)), keepdim=True))
