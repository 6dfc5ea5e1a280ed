"""The four energies of Rezende and Mohamed, table 1, each as it stands there, in numpy."""

import numpy as np
import pytest
import torch

from discrete.inference.energies import forked_sine, ring, sine, split_sine

POINTS = np.random.default_rng(0).uniform(-3.5, 3.5, size=(50, 2))


def gauss(v, width):
    return np.exp(-0.5 * (v / width) ** 2)


def in_print(z):
    a, b = z.T
    w1 = np.sin(2 * np.pi * a / 4)
    w2 = 3 * np.exp(-0.5 * ((a - 1) / 0.6) ** 2)
    w3 = 3 / (1 + np.exp(-(a - 1) / 0.3))
    return {
        ring: 0.5 * ((np.hypot(a, b) - 2) / 0.4) ** 2 - np.log(gauss(a - 2, 0.6) + gauss(a + 2, 0.6)),
        sine: 0.5 * ((b - w1) / 0.4) ** 2,
        split_sine: -np.log(gauss(b - w1, 0.35) + gauss(b - w1 + w2, 0.35)),
        forked_sine: -np.log(gauss(b - w1, 0.4) + gauss(b - w1 + w3, 0.35)),
    }


@pytest.mark.parametrize("energy", [ring, sine, split_sine, forked_sine])
def test_paper(energy):
    found = energy(torch.from_numpy(POINTS)).numpy()
    np.testing.assert_allclose(found, in_print(POINTS)[energy], rtol=1e-12)
