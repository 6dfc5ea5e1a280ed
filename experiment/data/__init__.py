"""Datasets: three splits of rows, held in memory, checked once."""

from experiment.data.bsds300 import bsds300_patches
from experiment.data.cifar import cifar10_lossless_4k
from experiment.data.dataset import Dataset
from experiment.data.digits import digits
from experiment.data.labels import Labels, one_hot
from experiment.data.mnist import mnist
from experiment.data.table import table
from experiment.data.toys import TOY_ENTROPY_NATS, sample_toy, toy

__all__ = [
    "TOY_ENTROPY_NATS",
    "Dataset",
    "Labels",
    "bsds300_patches",
    "cifar10_lossless_4k",
    "digits",
    "mnist",
    "one_hot",
    "sample_toy",
    "table",
    "toy",
]
