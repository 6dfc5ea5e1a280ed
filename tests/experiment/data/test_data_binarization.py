import pytest
import torch

from experiment.data import Dataset, binarized, digits
from experiment.errors import UserError


def test_static_is_a_threshold_at_one_half() -> None:
    data = digits()
    found = binarized(data, "static")
    assert (found.bins, found.name) == (2, "digits binarized (static)")
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(found, split), (getattr(data, split) >= 8).float())


def test_stochastic_is_one_fixed_draw_with_the_grey_level_as_its_chance() -> None:
    grey = torch.arange(5.0).repeat(20_000, 1)
    data = Dataset("d", grey, grey[:7], grey[:9], bins=5)
    first, again, other = (
        binarized(data, "stochastic"),
        binarized(data, "stochastic"),
        binarized(data, "stochastic", seed=1),
    )
    assert torch.equal(first.train, again.train)
    assert not torch.equal(first.train, other.train)
    assert not torch.equal(first.train[:7], first.validation), "splits share their draws"
    share = first.train.double().mean(0)
    assert share[[0, 4]].tolist() == [0.0, 1.0]
    assert ((share - grey[0] / 4).abs() < 5 * 0.5 / 20_000**0.5).all()


def test_labels_and_image_shape_stay() -> None:
    data = digits(layout="image", labels=True)
    found = binarized(data, "stochastic")
    assert found.labels is data.labels
    assert (found.image_shape, found.event_shape) == (data.image_shape, data.event_shape)


def test_continuous_data_are_refused() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(UserError, match=r"^d: only integer data can be binarized"):
        binarized(Dataset("d", x, x, x), "static")
