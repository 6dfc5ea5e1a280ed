"""What planar, radial and Sylvester layers keep, against the papers' formulas with dense matrices, in float64.

`u`, `w`, ... are the layers' own parameters, so that another arithmetic behind the same names is told apart.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from discrete import Bijection

SLOPE = 0.2  # of the leaky ReLU below 0
Unary = Callable[[Tensor], Tensor]
SHAPES: dict[str, tuple[Unary, Unary]] = {  # h and h'
    "tanh": (torch.tanh, lambda s: 1 - torch.tanh(s) ** 2),
    "leaky_relu": (
        lambda s: torch.where(s >= 0, s, SLOPE * s),
        lambda s: torch.where(s >= 0, torch.ones_like(s), SLOPE),
    ),
}


def planar_is_the_papers(layer: Bijection, x: Tensor, *, activation: str = "tanh") -> None:
    """û = u + (log(1 + e^wᵀu) - 1 - wᵀu) w/(wᵀw), z = x + û h(wᵀx + b), det(I + û h' wᵀ).

    With tanh these are the formulas of normflows' `Planar` too.
    """
    h, slope = SHAPES[activation]
    u, w, b = (dict(layer.named_parameters())[name].detach() for name in ("u", "w", "b"))
    a = w @ u
    u_hat = u + (torch.log(1 + torch.exp(a)) - 1 - a) * w / (w @ w)
    s = x @ w + b
    assert (s > 0.1).any() and (s < -0.1).any(), "x lies on one side of the plane"  # noqa: PT018
    jacobians = torch.eye(len(w), dtype=x.dtype) + slope(s)[:, None, None] * torch.outer(u_hat, w)
    agrees(layer(x), x + h(s)[:, None] * u_hat, torch.linalg.slogdet(jacobians))


def radial_is_the_papers(layer: Bijection, x: Tensor) -> None:
    """z = x + β̂ h (x - x₀), h = 1/(α + r), β̂ = -α + log(1 + e^β), det = (1 + β̂h)^(D-1) (1 + β̂h + β̂h'r).

    normflows' `Radial` has |α| for α.
    """
    center, raw, beta = (dict(layer.named_parameters())[name].detach() for name in ("center", "alpha", "beta"))
    alpha = torch.log(1 + raw.exp())
    beta_hat = torch.log(1 + beta.exp()) - alpha
    r = (x - center).square().sum(1).sqrt()
    h, slope = 1 / (alpha + r), -1 / (alpha + r) ** 2
    det = (1 + beta_hat * h) ** (x.shape[1] - 1) * (1 + beta_hat * h + beta_hat * slope * r)
    z = x + (beta_hat * h)[:, None] * (x - center)
    agrees(layer(x), z, (det.sign(), det.abs().log()))


def sylvester_is_the_papers(layer: Bijection, x: Tensor, Q: Tensor) -> None:
    """z = x + Q R tanh(R̃ Qᵀx + b) with tanh on both diagonals, det(I + Q R diag(h') R̃ Qᵀ) of the dense matrix."""
    raw, raw_tilde, b = (dict(layer.named_parameters())[name].detach() for name in ("R", "R_tilde", "b"))
    R, R_tilde = (m.triu(1) + torch.diag(m.diagonal().tanh()) for m in (raw, raw_tilde))
    v = x @ Q @ R_tilde.T + b
    jacobians = torch.eye(len(Q), dtype=x.dtype) + Q @ R @ torch.diag_embed(1 - v.tanh() ** 2) @ R_tilde @ Q.T
    agrees(layer(x), x + v.tanh() @ R.T @ Q.T, torch.linalg.slogdet(jacobians))


def agrees(found: tuple[Tensor, Tensor], z: Tensor, signed: tuple[Tensor, Tensor], tolerance: float = 1e-12) -> None:
    """Values and log-determinants are the expected ones, and the determinants positive."""
    assert (signed[0] > 0).all(), "the paper's determinant is not positive"
    torch.testing.assert_close(found[0].detach(), z, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found[1].detach(), signed[1], rtol=tolerance, atol=tolerance)


def rises_along_w(layer: Bijection, *, reach: float = 30.0) -> None:
    """Along w, z·w grows with x·w everywhere: that is wᵀû > -1; and values and log-determinants are finite."""
    w = dict(layer.named_parameters())["w"].detach()
    steps = torch.linspace(-reach, reach, 2001, dtype=w.dtype)
    z, log_det = layer(steps[:, None] * w / (w @ w))
    assert z.isfinite().all(), "a value is not finite"
    assert log_det.isfinite().all(), "a log-determinant is not finite"
    growth = (z @ w).diff().detach()
    assert (growth > -1e-11 * reach).all(), f"z falls along w, by {-growth.min().item():g} in a step"


def inverse_has_implicit_gradients(layer: Bijection, z: Tensor, context: Tensor | None = None) -> None:
    """x of f(x; θ) = z moves with dx = -J⁻¹ ∂f/∂θ dθ in every parameter and context, J⁻¹ dz in z."""
    known = [z.clone().requires_grad_(), *layer.parameters()]
    if context is not None:
        known.append(context := context.clone().requires_grad_())
    g = torch.linspace(-1, 1, z.numel(), dtype=z.dtype).reshape(z.shape)
    x, _ = layer.inverse(known[0], context)
    found = torch.autograd.grad(x, known, g, materialize_grads=True, allow_unused=True)
    start = x.detach().requires_grad_()
    image, _ = layer(start, context)
    n = z[0].numel()
    rows = [torch.autograd.grad(image.flatten(1)[:, i].sum(), start, retain_graph=True)[0] for i in range(n)]
    J = torch.stack([row.flatten(1) for row in rows], 1)
    v = torch.linalg.solve(J.mT, g.flatten(1)).reshape(z.shape)
    rest = torch.autograd.grad(image, known[1:], -v, materialize_grads=True, allow_unused=True)
    for a, b in zip(found, (v, *rest), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def root_is_exact(root: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, *, roundings: float = 4) -> None:
    """|s + c tanh s - y| ≤ 4 roundings of its largest term, for κ = 1 + c from e⁻⁸⁰ to 20 000, y from 0 to 10⁶."""
    log_kappa = torch.cat([torch.linspace(-80, 9.9, 80), torch.linspace(-1, 1, 15)]).to(dtype)
    y = torch.cat([torch.zeros(1), torch.logspace(-12, 6, 250)]).to(dtype)
    y, log_kappa = (t.reshape(-1) for t in torch.broadcast_tensors(torch.cat([y, -y])[:, None], log_kappa))
    saturated = log_kappa.exp() - 1  # where tanh is about to reach its end
    y, log_kappa = torch.cat([y, y + y.sign() * saturated.abs()]), log_kappa.repeat(2)
    s, y, kappa = root(y, log_kappa).double(), y.double(), log_kappa.double().exp()
    t = torch.tanh(s)
    # s - tanh s has no digits left for small s in float64: its series has.
    difference = torch.where(s.abs() < 1e-2, s**3 / 3 - 2 * s**5 / 15 + 17 * s**7 / 315, s - t)
    terms = torch.stack([y.abs(), s.abs(), ((kappa - 1) * t).abs()]).amax(0)
    error = (difference + kappa * t - y).abs() / (torch.finfo(dtype).eps * terms.clamp(min=1e-300))
    assert s.isfinite().all(), "a root is not finite"
    assert error.max() <= roundings, f"a root is {error.max().item():.3g} roundings off"


def frame_is_orthonormal(Q: Tensor) -> None:
    """QᵀQ = I."""
    torch.testing.assert_close(Q.mT @ Q, torch.eye(Q.shape[-1], dtype=Q.dtype).expand(len(Q), -1, -1))
