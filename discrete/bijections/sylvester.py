"""Sylvester flows: planar flows of several directions at once, invertible by as many scalar roots in turn."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.rng import Rng
from discrete.bijection import Bijection, Context, Direction, Events, Mapped
from discrete.bijections.amortization import Amortization
from discrete.bijections.root_find import Tanh, log_cosh

Rows = Float[Tensor, "rows M"]
Frames = Float[Tensor, "sets D M"]
Parametrization = Literal["orthogonal", "householder"]
MOST = 32  # directions where none are asked for
TANH = Tanh()


class Sylvester(Bijection):
    """z = x + Q R h(R̃ Qᵀx + b), h = tanh, Q of M orthonormal columns, R and R̃ upper triangular M × M.

    log|det| = Σᵢ log(1 + rᵢᵢ r̃ᵢᵢ h'(vᵢ)) with v = R̃ Qᵀx + b, by Sylvester's identity and because R̃ R is triangular.
    With rᵢᵢ = tanh pᵢ and r̃ᵢᵢ = tanh qᵢ every rᵢᵢ r̃ᵢᵢ > -1, and the map is invertible: v + R̃ R h(v) = R̃ Qᵀz + b is
    solved from the last row up, one scalar equation each, and x = z - Q R h(v). O(MD + M²) a row in both directions, M
    steps one after another in the inverse. It is differentiable to any order in z, context and parameters.

    Starts at the identity, R = 0. With a context all of Q, R, R̃ and b are learned + linear(context) for each row, the
    linear part zero at first.

    References:
        van den Berg, Hasenclever, Tomczak, Welling, "Sylvester normalizing flows for variational inference", 2018,
        eq. 8-13. Rezende and Mohamed, "Variational inference with normalizing flows", 2015, for M = 1.

    Checked by tests/contracts/bijections.py and tests/discrete/test_sylvester.py.

    Args:
        event_shape: shape of one event; every event is read as a vector of D values.
        parametrization: of Q from any D × M matrix: `orthogonal` by Gram-Schmidt (QR), exactly where the paper
            iterates, or `householder`, the first M columns of a product of M reflections. Either reaches every Q up to
            signs, which R and R̃ make up for.
        rank: number M of directions, 1 to D; D where omitted, but no more than 32.
        context_features: width of the context, 0 for none.

    Raises:
        ValueError: an unknown parametrization, or a rank outside 1..D.

    Note:
        1 + rᵢᵢ r̃ᵢᵢ = cosh(pᵢ + qᵢ)/(cosh pᵢ cosh qᵢ) is kept as its log, finite where tanh rounds to ±1. The
        slope of each direction alone lies within (0, 2).
        With a context Q is made anew for each row: reflections take products and one substitution, QR a factorization.

    Example:
        >>> layer = Sylvester(5, rank=2)
        >>> z, log_det = layer(torch.ones(3, 5))
        >>> log_det.shape, log_det.abs().max().item() < 1e-6
        (torch.Size([3]), True)
    """

    Q: Tensor
    forward_direction = inverse_direction = Direction(0)

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        parametrization: Parametrization = "orthogonal",
        rank: int | None = None,
        context_features: int = 0,
    ) -> None:
        super().__init__(event_shape)
        D = self.event_shape.numel()
        M = min(D, MOST) if rank is None else rank
        if parametrization not in FRAMES or not 1 <= M <= D:
            raise ValueError(
                f"Sylvester needs a parametrization of {', '.join(FRAMES)} and a rank within 1..{D}, but has "
                f"{parametrization!r} and {M}."
            )
        self.frame = FRAMES[parametrization]
        self.R = nn.Parameter(torch.zeros(M, M))  # p on the diagonal; the lower triangles are never read
        self.R_tilde = nn.Parameter(torch.eye(M))  # q on the diagonal
        self.b = nn.Parameter(torch.zeros(M))
        if D > 1:
            self.Q = nn.Parameter(torch.randn(D, M))
        else:  # only a sign is left
            self.register_buffer("Q", torch.ones(1, 1))
        self.amortization = Amortization(self._learned(), context_features=context_features)

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """In closed form."""
        Q, R, R_tilde, b, log_kappa = self._rows(context)
        v = multiply(R_tilde, multiply(Q.mT, x.flatten(1))) + b
        z = x.flatten(1) + multiply(Q, multiply(R, v.tanh()))
        return z.reshape(x.shape), TANH.log_slope(v, log_kappa).sum(1)

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """By M scalar roots a row."""
        Q, R, R_tilde, b, log_kappa = self._rows(context)
        v = back_substitute(multiply(R_tilde, multiply(Q.mT, z.flatten(1))) + b, R_tilde @ R, log_kappa)
        x = z.flatten(1) - multiply(Q, multiply(R, v.tanh()))
        return x.reshape(z.shape), -TANH.log_slope(v, log_kappa).sum(1)

    def _learned(self) -> list[Tensor]:
        own: list[Tensor] = [self.R, self.R_tilde, self.b]
        return [*own, self.Q] if self.event_shape.numel() > 1 else own

    def _rows(self, context: Context) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Q, R, R̃, b and log(1 + rᵢᵢ r̃ᵢᵢ), each of all rows, or of one where there is no context."""
        R, R_tilde, b, *turned = self.amortization(self._learned(), context)
        Q = self.frame(turned[0]) if turned else self.Q[None]
        p, q = R.diagonal(dim1=1, dim2=2), R_tilde.diagonal(dim1=1, dim2=2)
        log_kappa = log_cosh(p + q) - log_cosh(p) - log_cosh(q)
        return Q, R.triu(1) + p.tanh().diag_embed(), R_tilde.triu(1) + q.tanh().diag_embed(), b, log_kappa


def multiply(matrix: Float[Tensor, "sets m n"], x: Float[Tensor, "rows n"]) -> Float[Tensor, "rows m"]:
    """Each row by its own matrix, or by the one that there is: `(rows, n)` to `(rows, m)`."""
    return x @ matrix[0].mT if len(matrix) == 1 else torch.bmm(matrix, x.unsqueeze(2)).squeeze(2)


def back_substitute(t: Rows, T: Float[Tensor, "sets M M"], log_kappa: Float[Tensor, "sets M"]) -> Rows:
    """v with v + T tanh(v) = t, T upper triangular with diagonal κ - 1, by one scalar root after another.

    Args:
        t: right-hand sides, `(rows, M)`.
        T: `(rows, M, M)`, or `(1, M, M)` for all; read above its diagonal.
        log_kappa: log κ, `(rows, M)` or `(1, M)`.
    """
    v: list[Tensor] = []
    for i in reversed(range(t.shape[1])):
        v.append(TANH.root(t[:, i], log_kappa[:, i]))
        t = t[:, :i] - T[:, :i, i] * v[-1].tanh()[:, None]
    return torch.stack(v[::-1], 1)


def gram_schmidt(A: Frames) -> Frames:
    """Q of A = Q R, `(sets, D, M)`, with R's diagonal positive, which makes it continuous in A."""
    Q, R = torch.linalg.qr(A)
    return Q * torch.where(R.diagonal(dim1=1, dim2=2) < 0, -1, 1).unsqueeze(1)


def reflect(A: Frames) -> Frames:
    """First M columns of H₁ ⋯ H_M = I - Vᵀ T V, where the columns of A are the vectors of the reflections, rows of V.

    T as of `HouseholderMatrix`, here for each row.
    """
    gram = A.mT @ A
    inverse_t = gram.triu(1) + (0.5 * gram.diagonal(dim1=1, dim2=2)).diag_embed()
    M = A.shape[2]
    first = torch.eye(A.shape[1], M, dtype=A.dtype, device=A.device)
    return first - A @ torch.linalg.solve_triangular(inverse_t, A[:, :M].mT, upper=True)


FRAMES: dict[str, Callable[[Tensor], Tensor]] = {"orthogonal": gram_schmidt, "householder": reflect}
