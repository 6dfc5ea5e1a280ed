from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from core.bases import StandardNormal
from core.density import DensityModel
from core.shapes import vector_size
from discrete.bijection import Compose
from discrete.bijections.gaussianization import MixtureGaussianization
from discrete.bijections.linear import Rotation
from discrete.flow import Flow
from discrete.rbig import RotationName, fit_layers


def GaussianizationFlow(
    event_shape: int | Sequence[int],
    *,
    layers: int = 5,
    components: int = 16,
    reflections: int | None = None,
    base: DensityModel | None = None,
) -> Flow:
    """Gaussianization flow: mixture Gaussianizations of the features with a trained rotation between every two.

    Both directions are one pass a layer, the inverse by a bracketed Newton iteration of a few steps. A random start
    learns slowly: `initialize_gaussianization` starts it from data.

    References:
        Meng, Song, Song, Ermon, "Gaussianization flows", 2020, sections 3.1 to 3.3.

    Checked by tests/contracts/densities.py and tests/discrete/test_rbig.py.

    Args:
        event_shape: number D of features.
        layers: number of Gaussianizations.
        components: logistics of each feature.
        reflections: Householder reflections of each rotation, even, 0 to D; as many as make every rotation where
            omitted.
        base: density of z; the standard normal where omitted.

    Returns:
        The flow.

    Raises:
        ValueError: an event that is no vector, no layer or component, reflections that are odd or outside 0..D, or a
            base over another shape.

    Example:
        >>> flow = GaussianizationFlow(2, layers=3)
        >>> flow.log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """
    n = vector_size(event_shape, owner="GaussianizationFlow")
    if layers < 1:
        raise ValueError(f"GaussianizationFlow needs 1 layer or more, but has layers={layers}.")
    chain = [
        part
        for _ in range(layers)
        for part in (Rotation(n, reflections=reflections), MixtureGaussianization(n, components=components))
    ]
    return Flow(Compose(*chain[1:]), StandardNormal(n) if base is None else base)


def initialize_gaussianization(
    flow: Flow,
    x: Float[Tensor, "rows features"],
    *,
    rotation: RotationName = "random",
    generator: torch.Generator | None = None,
) -> Float[Tensor, " layers"]:
    """Starts a Gaussianization flow from data, by rotation-based iterative Gaussianization; see `rbig`.

    References:
        Meng, Song, Song, Ermon, "Gaussianization flows", 2020, section 3.4.

    Checked by tests/discrete/test_rbig.py.

    Args:
        flow: of `GaussianizationFlow`.
        x: rows, some thousands suffice.
        rotation: `pca`, to principal axes, or `random`; one of fewer reflections than make every rotation is drawn in
            any case.
        generator: draws the rotations.

    Returns:
        The nats that each layer removed.

    Raises:
        ValueError: fewer than 2 rows, or a constant feature.

    Example:
        >>> x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)).exp()
        >>> flow = GaussianizationFlow(2, layers=2)
        >>> removed = initialize_gaussianization(flow, x)
        >>> bool(removed[0] > 10 * removed[1].abs())  # the features are independent: one layer does
        True
    """
    if not isinstance(flow.bijection, Compose):
        raise ValueError(
            f"initialize_gaussianization takes a GaussianizationFlow, not a {type(flow.bijection).__name__}."
        )
    return fit_layers(flow.bijection, x, rotation=rotation, generator=generator)
