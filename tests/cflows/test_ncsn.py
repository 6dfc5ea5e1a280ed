import pytest
import torch
from helpers import normal, perturb, rng, seeded

from cflows import NCSN, LadderDenoising, annealed_langevin, matched_step_size
from core import GaussianMixture
from core.nets import FourierEmbedding, UNet

LADDER = (2.0, 0.5, 0.1)


def levels(value: float, rows: int = 5) -> torch.Tensor:
    return torch.full((rows,), value, dtype=torch.float64)


@pytest.mark.parametrize("event", [3, (1, 4, 4)])
@pytest.mark.parametrize("data_std", [1.0, 0.3])
def test_untrained_embedding_is_the_score_of_gaussian_data(event, data_std) -> None:
    model = NCSN(event, sigmas=LADDER, hidden=(8,), data_std=data_std).double()
    x = normal(5, model.event_shape, rng(0))
    for sigma in LADDER:
        torch.testing.assert_close(model.score(x, levels(sigma)), -x / (data_std**2 + sigma**2))


def test_preconditioning_gives_the_network_unit_variance() -> None:
    """x/√V has variance 1 and, for Gaussian data of another variance c, so has what f must return, up to its sign."""
    sigma, v = 0.7, 0.25
    seen: list[torch.Tensor] = []
    model = NCSN(2, sigmas=LADDER, hidden=(8,), data_std=v**0.5).double()
    model.conditional.net.net.forward = lambda x, embedding: seen.append(x) or torch.ones_like(x)
    x = (v + sigma**2) ** 0.5 * normal(20_000, (2,), rng(1))
    score = model.score(x, levels(sigma, len(x)))
    assert seen[0].std().item() == pytest.approx(1.0, abs=0.02)
    torch.testing.assert_close(score + x / (v + sigma**2), torch.full_like(x, v**0.5 / sigma / (v + sigma**2) ** 0.5))


def test_scaling_divides_by_the_noise() -> None:
    model = perturb(seeded(lambda: NCSN(3, sigmas=LADDER, hidden=(8,), conditioning="scaling")), rng(2))
    x = normal(5, (3,), rng(3))
    torch.testing.assert_close(0.5 * model.score(x, levels(0.5)), 2.0 * model.score(x, levels(2.0)))


def test_instance_norm_takes_the_nearest_level_in_log_sigma() -> None:
    build = lambda: NCSN((1, 4, 4), sigmas=LADDER, network="refinenet", hidden=(4,), conditioning="instance_norm")  # noqa: E731
    model = perturb(seeded(build), rng(4))
    x = normal(5, (1, 4, 4), rng(5))
    for index, sigma in enumerate(LADDER):
        expected = model.conditional.net(x, torch.full((5,), index))
        torch.testing.assert_close(model.score(x, levels(sigma)), expected)
        torch.testing.assert_close(model.score(x, levels(1.3 * sigma)), expected)
    # Between 2 and ½ the border is 1, their geometric mean, not 1.25.
    assert torch.equal(model.score(x, levels(1.1)), model.score(x, levels(2.0)))


def test_draws_are_those_of_annealed_langevin() -> None:
    model = perturb(seeded(lambda: NCSN(2, sigmas=LADDER, hidden=(8,), steps=4, step_size=0.003)), rng(6))
    found = model.sample((7,), generator=rng(7))
    generator = rng(7)
    x = 2.0 * normal(7, (2,), generator)
    keywords = {"step_size": 0.003, "steps": 4, "denoise": True, "generator": generator}
    torch.testing.assert_close(found, annealed_langevin(model.score, LADDER, x, **keywords), rtol=1e-6, atol=1e-6)


def test_step_size_matches_the_ladder_where_none_is_given() -> None:
    given = NCSN(2, sigmas=LADDER, hidden=(8,), steps=4, step_size=matched_step_size(LADDER, steps=4))
    found = NCSN(2, sigmas=LADDER, hidden=(8,), steps=4)
    torch.testing.assert_close(found.sample((3,), generator=rng(8)), given.sample((3,), generator=rng(8)))


def test_uniform_start() -> None:
    """After one tiny step chains still are where they started."""
    model = NCSN(2, sigmas=(1e-6,), hidden=(8,), steps=1, step_size=1e-12, start="uniform", denoise=False)
    x = model.sample((2000,), generator=rng(9))
    assert ((x > -1e-3) & (x < 1 + 1e-3)).all()
    assert x.mean().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.slow
def test_training_finds_two_modes_and_their_weights() -> None:
    """Modes at ±1 with weights ¾ and ¼: scores at every level, and draws."""
    means = torch.tensor([[-1.0], [1.0]])
    data = GaussianMixture(means, torch.full((2, 1, 1), 0.01), torch.tensor([0.75, 0.25]))
    ladder = torch.logspace(0.5, -1.3, 8)
    model = seeded(lambda: NCSN(1, sigmas=ladder, hidden=(32, 32), steps=20))
    loss = LadderDenoising(model, model.sigmas)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    generator = rng(10)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / 400)
        optimizer.zero_grad()
        loss(data.sample((512,), generator=generator), generator=generator).backward()
        optimizer.step()
    x = model.eval().sample((2000,), generator=generator)[:, 0]
    share = (x > 0).float().mean().item()
    assert share == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 2000) ** 0.5 + 0.02)
    assert x[x > 0].mean().item() == pytest.approx(1.0, abs=0.05)
    assert x[x < 0].std().item() == pytest.approx(0.1, abs=0.03)
    for sigma in ladder:
        noisy = data.sample((500,), generator=generator)
        noisy += sigma * torch.randn(noisy.shape, generator=generator)
        truth = data.perturbed_score(noisy, torch.ones(()), sigma)
        with torch.no_grad():
            error = (sigma * (model.score(noisy, sigma.expand(500)) - truth)).square().mean().sqrt().item()
        assert error < 0.15, f"at σ = {sigma:.3f} the score is off by {error:.3f}/σ"


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"conditioning": "instance_norm"}, "instance_norm' goes with network refinenet, not 'mlp'"),
        ({"network": "unet"}, "takes images"),
        ({"network": "refinenet"}, "embedding' goes with network mlp or unet"),
        ({"conditioning": "scaling", "context_features": 2}, "only conditioning='embedding' takes a context"),
        ({"sigmas": (0.1, 1.0)}, "fall strictly"),
        ({"sigmas": (0.1,)}, "two levels or more, but there is one: give step_size"),
        ({"step_size": 0.0}, "step_size > 0, but it is 0.0"),
    ],
)
def test_what_does_not_go_together_is_named(keywords, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        NCSN(3, **keywords)


@pytest.mark.parametrize("conditioning", ["embedding", "scaling"])
def test_the_unet_is_made_of_what_was_asked_for(conditioning) -> None:
    options = {"hidden": (4, 8), "heads": 2, "dropout": 0.25}
    model = NCSN((1, 4, 4), sigmas=LADDER, conditioning=conditioning, depth=1, **options)
    (net,) = (m for m in model.modules() if isinstance(m, UNet))
    embedding = FourierEmbedding(frequencies=8).out_features if conditioning == "embedding" else 0
    asked = UNet(1, 1, blocks=1, embedding_features=embedding, **options)
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in asked.state_dict().items()}
    assert {m.p for m in net.modules() if isinstance(m, torch.nn.Dropout | torch.nn.Dropout2d)} == {0.25}


def test_one_width_for_refinenet() -> None:
    with pytest.raises(ValueError, match="one width"):
        NCSN((1, 4, 4), network="refinenet", conditioning="scaling", hidden=(8, 8))


def test_context_is_refused_where_it_would_be_ignored() -> None:
    model = NCSN(2, sigmas=LADDER, hidden=(8,), conditioning="scaling")
    with pytest.raises(ValueError, match="context_features=0"):
        model.score(torch.zeros(2, 2), torch.ones(2), torch.zeros(2, 1))
