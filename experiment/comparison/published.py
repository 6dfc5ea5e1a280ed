"""Likelihoods in print, to be read beside ours."""

import tomllib
from dataclasses import dataclass
from importlib.resources import files

SAME = {"bsds300_patches": "bsds300"}  # data rebuilt from the same source by the published recipe


@dataclass(frozen=True)
class Published:
    """A number of a paper.

    Attributes:
        model: as the paper calls it.
        value: test log-likelihood in nats a row, or bits per dimension.
        error: as printed; NaN where none is. Some are standard errors over test rows, some the spread of trainings.
        unit: `nats` or `bits/dim`.
        source: where it was read.
    """

    model: str
    value: float
    error: float
    unit: str
    source: str


def published(dataset: str) -> tuple[Published, ...]:
    """Numbers of papers on a data set, best last; none where we know of none.

    Example:
        >>> published("power")[0].model
        'full-covariance Gaussian'
    """
    table = tomllib.loads(files("experiment.comparison").joinpath("published.toml").read_text()).get(
        SAME.get(dataset, dataset)
    )
    if table is None:
        return ()
    unit, source = table["unit"], table["source"]
    return tuple(Published(model, value, error, unit, source) for model, value, error in table["rows"])
