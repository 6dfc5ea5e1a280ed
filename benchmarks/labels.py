"""Images with their labels, for judges that are trained beside the models and never with them."""

import gzip
from pathlib import Path

import numpy as np
import pooch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from experiment.data import mnist
from experiment.data.mnist import MNIST_URL

SHA256 = {
    "train": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
Labelled = tuple[NDArray[np.float64], NDArray[np.int64]]  # pixels `(rows, D)` in [0, 1], and classes


def labelled_digits() -> tuple[Labelled, Labelled]:
    """scikit-learn's digits: 1437 rows to train, 360 to test."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:-360], order[-360:]
    return (x[train] / 16, y[train]), (x[test] / 16, y[test])


def labelled_mnist(root: Path) -> tuple[Labelled, Labelled]:
    """The official training and test images."""
    data = mnist(root)
    train = np.concatenate([data.train.numpy(), data.validation.numpy()])
    return (train / 255.0, _labels(root, "train")), (data.test.numpy() / 255.0, _labels(root, "t10k"))


def _labels(root: Path, split: str) -> NDArray[np.int64]:
    name = f"{split}-labels-idx1-ubyte.gz"
    path = pooch.retrieve(MNIST_URL + name, f"sha256:{SHA256[split]}", fname=name, path=root / "mnist")
    content = gzip.decompress(Path(path).read_bytes())
    return np.frombuffer(content, np.uint8, offset=8).astype(np.int64)
