"""Images with their labels, for judges that are trained beside the models and never with them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from experiment.data import mnist

Labelled = tuple[NDArray[np.float64], NDArray[np.int64]]  # pixels `(rows, D)` in [0, 1], and classes


def labelled_digits() -> tuple[Labelled, Labelled]:
    """scikit-learn's digits: 1437 rows to train, 360 to test."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:-360], order[-360:]
    return (x[train] / 16, y[train]), (x[test] / 16, y[test])


def labelled_mnist(root: Path) -> tuple[Labelled, Labelled]:
    """The official training and test images."""
    data = mnist(root, labels=True)
    train = np.concatenate([data.train.numpy(), data.validation.numpy()])
    classes = np.concatenate([data.labels.train.numpy(), data.labels.validation.numpy()])
    return (train / 255.0, classes), (data.test.numpy() / 255.0, data.labels.test.numpy())
