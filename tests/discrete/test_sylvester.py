"""Sylvester layers and flows: the papers' formula, orthonormal columns, the triangular system, the planar case."""

import copy
from functools import partial

import pytest
import torch
from contracts import bijections, planar
from helpers import normal, perturb, rng, seeded

from discrete import Inverse, Planar, Sylvester, SylvesterFlow
from discrete.bijections.sylvester import MOST, back_substitute, gram_schmidt, reflect

PARAMETRIZATIONS = pytest.mark.parametrize("parametrization", ["orthogonal", "householder"])


def layer(parametrization: str = "orthogonal", rank: int = 3, seed: int = 1, **keywords: int) -> Sylvester:
    build = partial(Sylvester, 5, parametrization=parametrization, rank=rank, **keywords)
    return perturb(seeded(build), rng(seed), std=1.0)


@PARAMETRIZATIONS
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_paper(parametrization: str, rank: int) -> None:
    made = layer(parametrization, rank)
    Q = made.frame(made.Q[None].detach())[0]
    planar.sylvester_is_the_papers(made, 2 * normal(20, (5,), rng(2)), Q)


@pytest.mark.parametrize("frame", [gram_schmidt, reflect])
@pytest.mark.parametrize("columns", [1, 4, 6])
def test_frames_are_orthonormal(frame: object, columns: int) -> None:
    planar.frame_is_orthonormal(frame(normal(10, (6, columns), rng(3))))


def test_gram_schmidt_is_continuous_and_keeps_an_orthonormal_frame() -> None:
    """LAPACK's Q changes its sign where the first entry of a column does."""
    frame = gram_schmidt(normal(1, (6, 4), rng(4)))
    torch.testing.assert_close(gram_schmidt(frame), frame)
    torch.testing.assert_close(gram_schmidt(-frame), -frame)


def test_reflections_are_those_of_their_vectors() -> None:
    A = normal(1, (6, 4), rng(5))
    product = torch.eye(6, dtype=torch.float64)
    for v in A[0].T:
        product = product @ (torch.eye(6, dtype=torch.float64) - 2 * torch.outer(v, v) / (v @ v))
    torch.testing.assert_close(reflect(A)[0], product[:, :4])


def test_one_direction_is_a_planar_layer() -> None:
    """With w = r̃ q and û = r q."""
    made = layer(rank=1)
    q = made.frame(made.Q[None].detach())[0, :, 0]
    r, r_tilde = made.R.detach().tanh()[0, 0], made.R_tilde.detach().tanh()[0, 0]
    other = Planar(5).double()
    a = (r * r_tilde).add(1).exp().sub(1).log()  # m(a) = r r̃
    with torch.no_grad():
        other.w.copy_(r_tilde * q)
        other.u.copy_(a / r_tilde * q)
        other.b.copy_(made.b[0])
    x = normal(10, (5,), rng(6))
    for direction, expected in ((made, other), (made.inverse, other.inverse)):
        for ours, theirs in zip(direction(x), expected(x), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_back_substitution_solves_the_system() -> None:
    p, q = normal(2, (8, 4), rng(7))[0], normal(2, (8, 4), rng(8))[1]
    kappa = (p + q).cosh() / (p.cosh() * q.cosh())
    T = normal(8, (4, 4), rng(9)).triu(1) + (kappa - 1).diag_embed()
    t = 5 * normal(8, (4,), rng(10))
    v = back_substitute(t, T, kappa.log())
    torch.testing.assert_close(v + (T @ v.tanh()[..., None])[..., 0], t)


@pytest.mark.parametrize("size", [20.0, 200.0])
def test_saturated_diagonals(size: float) -> None:
    """r r̃ rounds to -1: the layer still rises, its log-determinant is finite, and it goes back."""
    made = layer()
    with torch.no_grad():
        made.R.copy_(torch.diag(torch.tensor([size, size, -1.0])))
        made.R_tilde.copy_(torch.diag(torch.tensor([-size, size, 1.0])))
    x = normal(30, (5,), rng(11))
    for module, tolerance in ((made, 1e-6), (copy.deepcopy(made).float(), 1e-2)):
        y = x.to(module.b.dtype)
        z, log_det = module(y)
        assert log_det.isfinite().all()
        back, _ = module.inverse(z)
        torch.testing.assert_close(back, y, rtol=tolerance, atol=tolerance)


@PARAMETRIZATIONS
def test_implicit_gradients(parametrization: str) -> None:
    planar.inverse_has_implicit_gradients(layer(parametrization), normal(4, (5,), rng(12)))
    planar.inverse_has_implicit_gradients(
        layer(parametrization, context_features=2), normal(4, (5,), rng(12)), normal(4, (2,), rng(13))
    )


def test_second_derivatives_of_the_inverse() -> None:
    made, z = layer(rank=2), normal(1, (5,), rng(14)).requires_grad_()
    b = made.b.detach().clone().requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda z, b: torch.func.functional_call(Inverse(made), {"bijection.b": b}, (z,)), (z, b), fast_mode=True
    )


@PARAMETRIZATIONS
def test_a_fresh_layer_is_the_identity(parametrization: str) -> None:
    made = seeded(partial(Sylvester, (2, 3), parametrization=parametrization, context_features=2))
    x, context = torch.randn(7, 2, 3, generator=rng(15)), torch.randn(7, 2, generator=rng(16))
    z, log_det = made(x, context)
    torch.testing.assert_close(z, x, rtol=0, atol=1e-6)
    torch.testing.assert_close(log_det, torch.zeros(7), rtol=0, atol=1e-6)


def test_the_context_turns_the_frame() -> None:
    """Every parameter of a row is its own: two rows of one context agree, others do not."""
    made = layer("householder", context_features=1)
    x, context = normal(1, (5,), rng(17)).expand(3, 5), torch.tensor([[0.3], [0.3], [0.9]], dtype=torch.float64)
    z, _ = made(x, context)
    torch.testing.assert_close(z[0], z[1])
    assert (z[0] - z[2]).abs().max() > 1e-2


def test_rank() -> None:
    assert Sylvester(3).R.shape == (3, 3)
    assert Sylvester((1, 28, 28)).R.shape == (MOST, MOST)
    for rank in (0, 4):
        with pytest.raises(ValueError, match=rf"rank within 1\.\.3, but has 'orthogonal' and {rank}"):
            Sylvester(3, rank=rank)


def test_fast_directions_are_each_others_inverse() -> None:
    there, back = (
        perturb(seeded(partial(SylvesterFlow, 3, layers=3, fast=fast)), rng(1)) for fast in ("sample", "log_prob")
    )
    y = normal(5, (3,), rng(18))
    torch.testing.assert_close(there.decode(y), back.encode(y))
    bijections.round_trips(there.bijection, y, y)
