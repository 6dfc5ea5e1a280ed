import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from cases import VAES
from contracts import densities, masses, modules
from contracts import vae as contracts
from helpers import normal, perturb, rng, seeded
from torch import Tensor, nn

from core import DiagonalNormal, StandardNormal
from core.bases import Base
from core.nets.gated_conv import GatedConvDecoder, GatedConvEncoder
from core.rng import RowGenerators
from discrete import IAF, Diagonal, Flow
from discrete.inference import VAE, NegativeELBO, negative_elbo
from discrete.inference.posteriors import ConditionalDiagonal
from discrete.likelihoods import DiscretizedLogisticMixture

NAMES = pytest.mark.parametrize("name", VAES)
BINARY = [name for name, case in VAES.items() if case.bins == 2 and not case.context_features]
REACHING = pytest.mark.parametrize("name", contracts.REACHING)


class Setting:
    def __init__(self, name: str, rows: int = 4) -> None:
        self.case = VAES[name]
        self.model: VAE = self.case.make()
        self.x = self.case.data(rows, self.model.event_shape, rng(2))
        self.context = self.case.context(rows, rng(3))
        self.one = None if self.context is None else self.context[0]


def weights(vae: VAE, x: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    return vae.terms(x, samples=samples, generator=generator).log_weights


def bound(vae: VAE, x: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    vae.importance_samples, vae.draws = samples, 1
    return vae.log_prob(x, generator=generator)


def log_prob(module: nn.Module, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
    generator = None if x.is_meta else RowGenerators(range(len(x)))
    return (module.log_prob(x, context, generator=generator),)


def draw(module: nn.Module, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
    with torch.random.fork_rng():
        return (module.sample((len(x),), context=context),)


def data(rows: int = 5) -> Tensor:
    return normal(rows, (contracts.D,), rng(9))


def perturbed(posterior: str, std: float = 0.2) -> VAE:
    """A linear decoder with an approximate posterior."""
    vae = seeded(partial(contracts.linear_gaussian, posterior))
    perturb(vae.posterior, rng(1), std=std)
    return vae


@REACHING
def test_every_draw_is_the_evidence_where_the_posterior_is_reached(name: str) -> None:
    x = data()
    contracts.every_weight_is_the_evidence(weights, contracts.REACHING[name](), x, contracts.evidence(x))


@REACHING
def test_wider_than_the_posterior(name: str) -> None:
    x, vae = data(), contracts.widened(name)
    exact = contracts.evidence(x)
    contracts.elbo_misses_the_evidence_by(weights, vae, x, exact, divergence=contracts.DIVERGENCE)
    contracts.weights_average_to_the_evidence(weights, vae, x, exact)
    contracts.bound_rises_to_the_evidence(bound, vae, x, exact)


@pytest.mark.parametrize("posterior", ["diagonal", "planar", "iaf", "sylvester"])
def test_no_posterior_passes_the_evidence(posterior: str) -> None:
    x, vae = data(), perturbed(posterior)
    contracts.elbo_is_below_the_evidence(weights, vae, x, contracts.evidence(x), gap=0.1)


def test_closed_form_elbo_and_gradient() -> None:
    vae, x = perturbed("diagonal"), data()
    contracts.elbo_is_the_closed_form(weights, vae, x)
    contracts.gradient_is_the_closed_form(weights, vae, x)


@pytest.mark.parametrize("name", BINARY)
def test_binary_masses(name: str) -> None:
    """Masses of all events by quadrature sum to 1, weights average to them, and exp of the bounds sums to 1."""
    vae = Setting(name).model
    x = masses.states(vae.event_shape, bins=2)
    if vae.prior.event_shape.numel() <= 2 and isinstance(vae.prior, StandardNormal):
        exact = contracts.evidence_by_quadrature(vae, x)
        assert abs(exact.exp().sum().item() - 1) < 1e-9
        contracts.weights_average_to_the_evidence(weights, vae, x, exact)
    contracts.exponentials_of_bounds_sum_to_one(bound, vae, x)


@pytest.mark.parametrize("name", [name for name in VAES if not VAES[name].context_features])
def test_draws_have_the_density_of_the_flow(name: str) -> None:
    s = Setting(name)
    contracts.draws_have_the_density_of_the_flow(s.model, s.x)


@pytest.mark.parametrize("name", [n for n in BINARY if isinstance(VAES[n].make().prior, StandardNormal)])
def test_draws_follow_the_masses(name: str) -> None:
    vae = Setting(name).model
    x = masses.states(vae.event_shape, bins=2)
    exact = contracts.evidence_by_quadrature(vae, x).exp()
    draws = vae.sample((20_000,), generator=rng(5)).flatten(1)
    place = (draws.long() * 2 ** torch.arange(draws.shape[1] - 1, -1, -1)).sum(1)
    counts = place.bincount(minlength=len(x)) / len(draws)
    assert ((counts - exact).abs() < 5 * (exact * (1 - exact) / len(draws)).sqrt() + 1e-9).all()


@NAMES
def test_module(name: str) -> None:
    s = Setting(name, rows=9)
    modules.gradients_reach_every_parameter(log_prob, s.model, s.x, s.context)
    modules.input_is_left_alone(log_prob, s.model, s.x, s.context)
    modules.copies_are_bit_equal(log_prob, s.model, seeded(s.case.build, seed=7), s.x, s.context)
    modules.rows_are_independent(log_prob, s.model, s.x, s.context)


@NAMES
def test_meta(name: str) -> None:
    s = Setting(name)
    modules.runs_on_meta(log_prob, s.model, s.x, s.context)
    modules.runs_on_meta(draw, s.model, s.x, s.context)


@NAMES
def test_sample(name: str) -> None:
    s = Setting(name)
    densities.sample_is_clean(s.model, s.context, generator=lambda: rng(6))


class Given(Base):
    """Noise that is the same in every dtype."""

    def _log_prob(self, x: Tensor) -> Tensor:
        return StandardNormal(self.event_shape).to(x).log_prob(x)

    def _rsample(self, shape: tuple[int, ...], generator: object) -> Tensor:
        return normal(math.prod(shape), tuple(self.event_shape), rng(7)).to(self.anchor).reshape(*shape, -1)


@NAMES
def test_float32(name: str) -> None:
    s = Setting(name, rows=9)
    flow = s.model.posterior
    while isinstance(flow.base, Flow):
        flow = flow.base
    flow.base = Given(flow.base.event_shape)
    modules.float32_is_close(log_prob, s.model, s.x, s.context, tolerance=1e-4)


@NAMES
def test_batch_shapes(name: str) -> None:
    """Any leading shape, an empty one too, as the same rows in line with the same noise; the context broadcasts."""
    s = Setting(name, rows=6)
    flat = s.model.log_prob(s.x, s.one, generator=rng(8))
    shaped = s.model.log_prob(s.x.reshape(2, 3, *s.model.event_shape), s.one, generator=rng(8))
    torch.testing.assert_close(shaped.flatten(), flat, rtol=1e-12, atol=1e-12)
    assert s.model.log_prob(s.x[0], s.one, generator=rng(8)).shape == ()
    assert s.model.log_prob(s.x[:0], s.one).shape == (0,)
    terms = s.model.terms(s.x.reshape(2, 3, *s.model.event_shape), s.one, samples=4, generator=rng(8))
    assert {term.shape for term in terms} == {(4, 2, 3)}


@NAMES
def test_estimate(name: str) -> None:
    s = Setting(name)
    estimate = s.model.estimate_log_prob(s.x, s.context, generator=rng(8))
    assert torch.equal(estimate.log_prob, s.model.log_prob(s.x, s.context, generator=rng(8)))
    assert estimate.kind == "bound"
    assert torch.count_nonzero(estimate.solver_error) == 0
    assert (estimate.std_error is None) == (s.model.draws == 1)


def test_standard_error_over_draws() -> None:
    """It is the spread of the mean of the draws, and their mean that of the bound of one draw."""
    vae, x = perturbed("diagonal"), data(3)
    w = weights(vae, x, 10_000, rng(0)).detach()
    vae.draws = 25
    many = [vae.estimate_log_prob(x, generator=rng(i)) for i in range(400)]
    means, errors = torch.stack([m.log_prob.detach() for m in many]), torch.stack([m.std_error for m in many])
    torch.testing.assert_close(errors.square().mean(0).sqrt(), means.std(0), rtol=0.15, atol=0)
    assert ((means.mean(0) - w.mean(0)).abs() < 5 * w.std(0) / 10_000**0.5 * 2**0.5).all()


def test_standard_error_of_importance_weighted_bounds() -> None:
    """K draws a bound, S bounds: S · K draws in all, every K of them one logarithm."""
    vae, x = perturbed("iaf"), data(3)
    vae.draws, vae.importance_samples = 3, 4
    found = vae.estimate_log_prob(x, generator=rng(1))
    w = vae.terms(x, samples=12, generator=rng(1)).log_weights.detach().reshape(3, 4, 3)
    expected = w.exp().mean(1).log()
    torch.testing.assert_close(found.log_prob.detach(), expected.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.std_error, expected.std(0) / 3**0.5, rtol=1e-12, atol=1e-12)


def test_algorithm_1() -> None:
    """log q = -Σ (½ ε² + ½ log 2π + log σ + Σ_t log σ_t), the gated steps written out from the same noise."""
    vae = seeded(lambda: VAE(5, latent=3, posterior="iaf", layers=3, posterior_hidden=(8,), hidden=(8,), features=4))
    perturb(vae, rng(1))
    x = torch.randint(2, (6, 5), generator=rng(2)).double()
    h = vae.encoder(2 * x - 1, None)
    start = vae.posterior.base
    epsilon, _ = start.base.rsample_and_log_prob((6, 1), generator=rng(3))
    a, mu = start.bijection.heads(h).chunk(2, 1)
    log_sigma = 7 * torch.tanh(a / 7)
    z = mu + log_sigma.exp() * epsilon[:, 0]
    log_q = -(0.5 * epsilon[:, 0].square() + 0.5 * math.log(2 * math.pi) + log_sigma).sum(1)
    for layer in vae.posterior.bijection.bijection.bijections:
        s, m = layer.conditioner(z, h).unbind(-1)
        sigma = torch.sigmoid(s + 2)
        z = sigma * z + (1 - sigma) * m
        log_q = log_q - sigma.log().sum(1)
    logits = vae.decoder(z, None)[..., 0]
    log_likelihood = -nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
    log_prior = -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
    terms = vae.terms(x, generator=rng(3))
    for found, expected in zip(terms, (log_likelihood, log_prior, log_q), strict=True):
        torch.testing.assert_close(found[0], expected, rtol=1e-10, atol=1e-10)


def test_agrees_with_negative_elbo() -> None:
    s = Setting("vae-planar")
    vae, x = s.model, s.x
    h = vae.encoder(vae.likelihood.rescale(x), None)

    def log_joint(z: Tensor) -> Tensor:
        log_values = vae.likelihood.log_prob(x, vae.decoder(z[0], None))
        return vae.prior.log_prob(z) + log_values.sum(1)

    found = negative_elbo(vae.posterior, log_joint, 1, context=h, generator=rng(1))
    torch.testing.assert_close(-found.draws_nats[0], vae.log_prob(x, generator=rng(1)), rtol=1e-12, atol=1e-12)


def test_built_from_the_event_shape_alone() -> None:
    assert VAE(4).event_shape == VAE((4,)).event_shape == (4,)
    assert VAE((1, 2, 2)).sample((3,), generator=rng(1)).shape == (3, 1, 2, 2)


def test_networks_without_hidden_layers() -> None:
    vae = VAE(4, latent=2, hidden=(), features=3)
    assert [p.shape for p in vae.decoder.parameters()] == [(4, 2), (4,)]


def test_values_outside_have_no_mass() -> None:
    s = Setting("vae-diagonal")
    s.x[1, 0] = 0.5
    found = s.model.log_prob(s.x, generator=rng(1))
    assert found[1] == -math.inf
    assert found[[0, 2, 3]].isfinite().all()


def test_a_likelihood_of_more_levels() -> None:
    law = DiscretizedLogisticMixture(bins=5, components=2)
    vae = seeded(lambda: VAE((2, 4, 3), latent=2, likelihood=law, hidden=(3,), features=4))
    x = vae.sample((7,), generator=rng(1))
    assert law.supports(x).all()
    assert vae.log_prob(x, generator=rng(2)).isfinite().all()


def test_importance_weighting_takes_the_mean_inside_the_logarithm() -> None:
    vae = Setting("vae-diagonal").model
    x = masses.states(vae.event_shape, bins=2)
    exact = contracts.evidence_by_quadrature(vae, x)
    rows = torch.tensor([0, 5, 6, 15])
    contracts.bound_rises_to_the_evidence(bound, vae, x[rows], exact[rows])


@pytest.mark.parametrize(("height", "width"), [(28, 28), (7, 5), (1, 2), (3, 3)])
def test_gated_convolutions_fit_any_image(height: int, width: int) -> None:
    shape = (2, height, width)
    h = GatedConvEncoder(shape, 6, hidden=(3, 4))(torch.ones(2, *shape))
    assert h.shape == (2, 6)
    assert GatedConvDecoder(6, shape, 3, hidden=(3, 4))(h).shape == (2, *shape, 3)


def test_gated_decoder_keeps_the_parameters_of_a_channel_together() -> None:
    decoder = GatedConvDecoder(2, (2, 3, 3), 3, hidden=(3,))
    with torch.no_grad():
        decoder.layers[-1].weight.zero_()
        decoder.layers[-1].bias.copy_(torch.arange(6.0))
    assert decoder(torch.zeros(1, 2))[0, :, 0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


class TestNegativeELBO:
    def test_without_settings_it_is_minus_the_bound(self) -> None:
        for name in ("vae-diagonal", "vae-image-iaf-bounds"):
            s = Setting(name)
            objective = NegativeELBO(s.model).train()
            expected = -s.model.log_prob(s.x, s.context, generator=rng(1)).mean()
            torch.testing.assert_close(objective(s.x, s.context, generator=rng(1)), expected)

    def test_warmup(self) -> None:
        contracts.warms_up(NegativeELBO, perturbed("diagonal"), data())

    def test_free_nats(self) -> None:
        contracts.frees_nats(NegativeELBO, perturbed("diagonal"), data())

    def test_steps_are_counted_in_training_and_saved(self) -> None:
        objective, fresh = (NegativeELBO(perturbed("diagonal"), warmup_steps=4) for _ in range(2))
        objective(data())
        objective.eval()(data())
        assert objective.steps.item() == 1
        fresh.load_state_dict(objective.state_dict())
        assert fresh.steps.item() == 1

    def test_importance_samples(self) -> None:
        vae, x = perturbed("iaf"), data()
        vae.draws, vae.importance_samples = 2, 5
        t = vae.terms(x, samples=10, generator=rng(1))
        objective = NegativeELBO(vae, warmup_steps=2)
        expected = (
            -(t.log_likelihood + 0.5 * (t.log_prior - t.log_posterior)).reshape(2, 5, len(x)).exp().mean(1).log().mean()
        )
        torch.testing.assert_close(objective(x, generator=rng(1)), expected)

    @pytest.mark.parametrize("setting", [{"warmup_steps": -1}, {"free_nats": -0.5}])
    def test_refuses(self, setting: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="takes no negative setting"):
            NegativeELBO(perturbed("diagonal"), **setting)


def test_training_lowers_the_loss() -> None:
    x = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]).repeat(16, 1)
    vae = seeded(lambda: VAE(4, latent=1, posterior="iaf", layers=1, posterior_hidden=(8,), hidden=(16,), features=8))
    objective = NegativeELBO(vae, warmup_steps=50)
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.02)
    for step in range(200):
        optimizer.zero_grad()
        objective(x, generator=rng(step)).backward()
        optimizer.step()
    vae.draws = 50
    loss = objective.eval()(x, generator=rng(0)).item()
    assert math.log(2) - 0.05 < loss < 1.4  # from 4 log 2; no bound is below the entropy, a fair choice between two


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VAE(4, latent=2, prior=StandardNormal(3)), r"prior must be over \(2,\)"),
        (lambda: VAE(4, latent=2, posterior=IAF(3)), r"posterior must be a flow over \(2,\)"),
        (lambda: VAE(4, importance_samples=0), "importance_samples and draws of 1 or more"),
        (lambda: VAE(4, draws=0), "importance_samples and draws of 1 or more"),
        (lambda: VAE((2, 3)), "takes vectors"),
        (lambda: GatedConvEncoder((1, 4, 4), 3, hidden=()), "at least one width"),
        (lambda: VAE(4, latent=2, decoder=contracts.Same()).sample((3,)), "decoder must give parameters"),
    ],
)
def test_errors(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("wrong", [{"posterior": "normal"}, {"likelihood": "poisson"}])
@pytest.mark.usefixtures("unannotated")
def test_unknown_names_are_refused_where_types_are_not_checked(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        VAE(4, latent=2, hidden=(8,), features=4, **wrong)


def test_prior_may_be_a_flow() -> None:
    prior = Flow(Diagonal(2, scale=2.0), DiagonalNormal(2, loc=1.0))
    vae = seeded(lambda: VAE(4, latent=2, prior=prior, hidden=(8,), features=4)).double()
    x = torch.zeros(3, 4, dtype=torch.float64)
    contracts.draws_have_the_density_of_the_flow(vae, x)
    assert sum(p.numel() for p in prior.parameters()) > 0


def test_posterior_refuses_a_context_that_does_not_fit() -> None:
    layer = ConditionalDiagonal(3, context_features=2)
    for wrong in (None, torch.zeros(4, 3)):
        with pytest.raises(ValueError, match="context_features=2, but context has"):
            layer(torch.zeros(4, 3), wrong)
