import torch
from sklearn.datasets import load_digits

from experiment.data import digits


def test_the_split_is_fixed() -> None:
    data = digits()
    assert (data.train.shape, data.validation.shape, data.test.shape) == ((1257, 64), (180, 64), (360, 64))
    assert (data.name, data.bins, data.image_shape) == ("digits", 17, (8, 8))
    assert data.train.dtype == torch.float32
    assert data.fingerprint == "3c37a4bfca2a7290", "published figures compare only on these test rows"


def test_the_splits_are_the_scikit_learn_rows() -> None:
    data = digits()
    found = torch.cat([data.train, data.validation, data.test]).tolist()
    assert sorted(found) == sorted(load_digits().data.tolist())


def test_each_row_has_its_own_label() -> None:
    data, source = digits(labels=True), load_digits()
    assert data.labels is not None
    rows = torch.cat([data.train, data.validation, data.test]).tolist()
    labels = torch.cat([data.labels.train, data.labels.validation, data.labels.test]).tolist()
    assert sorted(zip(rows, labels, strict=True)) == sorted(zip(source.data.tolist(), source.target, strict=True))


def test_both_layouts_hold_the_same_pixels() -> None:
    flat, image = digits(), digits(layout="image")
    assert image.event_shape == torch.Size([1, 8, 8])
    assert torch.equal(image.train.flatten(1), flat.train)
    assert image.image_shape == flat.image_shape
