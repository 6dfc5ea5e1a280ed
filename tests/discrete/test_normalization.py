import copy
import io

import pytest
import torch
from helpers import normal, rng

from discrete import ActNorm, RealNVP


def batch(event_shape: tuple[int, ...], *, rows: int = 64, seed: int = 0) -> torch.Tensor:
    return 3.0 * normal(rows, event_shape, rng(seed)) - 7.0


@pytest.mark.parametrize("event_shape", [(1,), (5,), (3, 4, 2)])
def test_first_training_batch_is_normalised(event_shape: tuple[int, ...]) -> None:
    """Zero mean and unit variance per feature or channel, the biased variance of that batch."""
    norm = ActNorm(event_shape).double().train()
    z, log_det = norm(batch(event_shape))
    dims = [d for d in range(z.ndim) if d != 1]
    std, mean = torch.std_mean(z, dims, correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-6)
    torch.testing.assert_close(std, torch.ones_like(std), rtol=0, atol=1e-5)
    positions = z[0, 0].numel()
    expected = -positions * batch(event_shape).std(dims, correction=0).log().sum()
    torch.testing.assert_close(log_det, expected.expand(64), rtol=1e-5, atol=1e-5)


def test_only_the_first_batch_counts() -> None:
    norm = ActNorm(2).double().train()
    first, _ = norm(batch((2,)))
    norm(batch((2,), seed=1) * 100)
    again, _ = norm(batch((2,)))
    assert torch.equal(first, again)


def test_evaluation_and_the_inverse_never_initialise() -> None:
    norm = ActNorm(2).double().eval()
    x = batch((2,))
    assert torch.equal(norm(x)[0], x)
    norm.train()
    assert torch.equal(norm.inverse(x)[0], x)
    assert not norm.initialised
    assert norm.log_scale.count_nonzero() == 0


def test_a_loaded_layer_never_initialises_again() -> None:
    norm = ActNorm(3).double().train()
    norm(batch((3,)))
    fresh = ActNorm(3).double().train()
    fresh.load_state_dict(norm.state_dict())
    other = batch((3,), seed=2) + 5
    for copied in (fresh, copy.deepcopy(norm)):
        assert torch.equal(copied(other)[0], norm(other)[0])


def test_a_layer_given_the_state_of_a_fresh_one_starts_again() -> None:
    norm, x = ActNorm(3).double().train(), batch((3,))
    norm(x)
    norm.load_state_dict(ActNorm(3).double().state_dict())
    z, _ = norm(x + 5)
    assert norm.initialised
    torch.testing.assert_close(z.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-12)


def test_a_saved_layer_comes_back_initialised_and_goes_on_training() -> None:
    """The flag is in the file; a batch of one is a batch like any other from then on."""
    norm = ActNorm(3).double().train()
    norm(batch((3,)))
    buffer, fresh = io.BytesIO(), ActNorm(3).double().train()
    torch.save(norm.state_dict(), buffer)
    buffer.seek(0)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert fresh.initialised
    other = batch((3,), seed=2, rows=1) + 5
    for a, b in zip(fresh(other), norm(other), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), norm.parameters(), strict=True))


def test_parameters_train_after_initialisation() -> None:
    norm = ActNorm(2).double().train()
    z, log_det = norm(batch((2,)))
    (z.square().sum() - log_det.sum()).backward()
    assert norm.bias.grad.isfinite().all()
    assert norm.log_scale.grad.isfinite().all()


@pytest.mark.parametrize("rows", [0, 1])
def test_a_batch_without_variance_is_refused(rows: int) -> None:
    with pytest.raises(ValueError, match="2 rows or more"):
        ActNorm(2).double().train()(batch((2,), rows=rows))


def test_a_constant_feature_stays_finite() -> None:
    norm = ActNorm(2).double().train()
    x = batch((2,))
    x[:, 1] = 4.0
    z, log_det = norm(x)
    assert z.isfinite().all()
    assert log_det.isfinite().all()


def test_every_layer_of_a_flow_initialises_on_what_it_sees() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = RealNVP(2, layers=3, hidden=(16,)).double().train()
    flow.log_prob(batch((2,)))
    norms = [layer for layer in flow.modules() if isinstance(layer, ActNorm)]
    assert len(norms) == 3
    assert all(norm.initialised for norm in norms)
    z, _ = flow.bijection(batch((2,)))
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-4)
