from pathlib import Path

from experiment.data.dataset import Dataset, Layout
from experiment.data.idx import idx_images

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
}
LABELS_SHA256 = {
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}

FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
}
FASHION_LABELS_MD5 = {
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}


def mnist(
    root: Path,
    *,
    layout: Layout = "flat",
    validation_rows: int = 10_000,
    labels: bool = False,
    url: str = MNIST_URL,
) -> Dataset:
    """70000 handwritten digits of 28x28 pixels and 256 grey levels, from the official files in `root/mnist`.

    The test rows are the official 10000, the validation rows the last of the official training set. A file that is
    absent is downloaded; one that is there is used only if its sha256 is the official one. The two files of labels are
    read only when they are asked for.

    Args:
        root: folder of all downloaded data.
        layout: "flat" for events of shape (784,), "image" for (1, 28, 28).
        validation_rows: rows held out of the 60000 training images.
        labels: whether models are to know which of the ten digits a row is.
        url: folder on the web that holds the files.

    Returns:
        The dataset, with `bins` 256.

    Raises:
        UserError: a file cannot be downloaded or is not the official one, or no training rows would be left.
    """
    return idx_images(
        "mnist",
        root,
        images=_digests("sha256", SHA256),
        classes=_digests("sha256", LABELS_SHA256),
        layout=layout,
        validation_rows=validation_rows,
        labels=labels,
        url=url,
    )


def fashion_mnist(
    root: Path,
    *,
    layout: Layout = "flat",
    validation_rows: int = 10_000,
    labels: bool = False,
    url: str = FASHION_URL,
) -> Dataset:
    """70000 pictures of clothes in the format of `mnist`, from the official files in `root/fashion_mnist`.

    References:
        Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms",
        2017, https://arxiv.org/abs/1708.07747; the md5 of its files stand in https://github.com/zalandoresearch/fashion-mnist.

    Args:
        root: folder of all downloaded data.
        layout: "flat" for events of shape (784,), "image" for (1, 28, 28).
        validation_rows: rows held out of the 60000 training images.
        labels: whether models are to know which of the ten kinds of clothes a row is.
        url: folder on the web that holds the files.

    Returns:
        The dataset, with `bins` 256.

    Raises:
        UserError: a file cannot be downloaded or is not the official one, or no training rows would be left.
    """
    return idx_images(
        "fashion_mnist",
        root,
        images=_digests("md5", FASHION_MD5),
        classes=_digests("md5", FASHION_LABELS_MD5),
        layout=layout,
        validation_rows=validation_rows,
        labels=labels,
        url=url,
    )


def _digests(algorithm: str, files: dict[str, str]) -> dict[str, str]:
    return {file: f"{algorithm}:{digits}" for file, digits in files.items()}
