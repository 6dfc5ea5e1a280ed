"""Datasets: three splits of rows, held in memory or mapped into it, checked once."""

from experiment.data.binarization import binarized
from experiment.data.bsds300 import bsds300_patches
from experiment.data.cifar import cifar10_lossless_4k
from experiment.data.cifar10 import cifar10
from experiment.data.dataset import Dataset
from experiment.data.digits import digits
from experiment.data.image_folder import image_folder
from experiment.data.labels import Labels, one_hot
from experiment.data.mapped import mapped_table
from experiment.data.mnist import fashion_mnist, mnist
from experiment.data.photographs import photographs
from experiment.data.table import table
from experiment.data.toys import TOY_ENTROPY_NATS, sample_toy, toy
from experiment.data.uci import uci
from experiment.data.uci_small import UCI_SMALL, uci_small

__all__ = [
    "TOY_ENTROPY_NATS",
    "UCI_SMALL",
    "Dataset",
    "Labels",
    "binarized",
    "bsds300_patches",
    "cifar10",
    "cifar10_lossless_4k",
    "digits",
    "fashion_mnist",
    "image_folder",
    "mapped_table",
    "mnist",
    "one_hot",
    "photographs",
    "sample_toy",
    "table",
    "toy",
    "uci",
    "uci_small",
]
