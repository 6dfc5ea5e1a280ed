from collections.abc import Sequence

from core.bases import StandardNormal
from core.density import DensityModel
from core.shapes import vector_size
from discrete.bijection import Bijection, Compose
from discrete.bijections.coupling import AffineCoupling, alternating_mask
from discrete.bijections.normalization import ActNorm
from discrete.flow import Flow


def RealNVP(
    event_shape: int | Sequence[int],
    *,
    layers: int = 8,
    strides: Sequence[int] = (1,),
    hidden: Sequence[int] = (128, 128),
    dropout: float = 0.0,
    activation: str = "relu",
    context_features: int = 0,
    log_scale_bound: float = 3.0,
    actnorm: bool = True,
    base: DensityModel | None = None,
) -> Flow:
    """RealNVP for vectors: affine couplings over alternating partitions, each after an activation normalization.

    References:
        Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, sections 3.2-3.5. `ActNorm` (Kingma
        and Dhariwal, 2018) stands where the paper has batch normalization: rows stay independent.

    Checked by tests/contracts/densities.py.

    Args:
        event_shape: number of features, 2 or more.
        layers: number of couplings; each two in a row share a partition, first one part passing, then the other.
        strides: lengths of the runs in which partitions alternate, used in turn: (1,) for neighbours, (1, W) for
            columns and then rows of a flattened image of even width W.
        hidden: widths of each coupling's network.
        dropout: dropout probability in training.
        activation: activation of the networks.
        context_features: width of the context, 0 for none.
        log_scale_bound: soft bound on every log-scale.
        actnorm: whether each coupling follows an `ActNorm`.
        base: density of the latent; a standard normal where omitted.

    Returns:
        The flow.

    Raises:
        ValueError: an event that is no vector of 2 features or more, a stride that leaves a part empty, or a base over
            another shape.

    Example:
        >>> import torch
        >>> flow = RealNVP(2)
        >>> flow.sample((5,), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([5, 2])
    """
    features = vector_size(event_shape, owner="RealNVP")
    if layers < 1 or not strides:
        raise ValueError(f"RealNVP needs 1 coupling and 1 stride or more, but has {layers=} and {strides=}.")
    steps: list[Bijection] = []
    for i in range(layers):
        if actnorm:
            steps.append(ActNorm(features))
        steps.append(
            AffineCoupling(
                features,
                mask=alternating_mask(features, strides[i // 2 % len(strides)], flipped=i % 2 == 1),
                hidden=hidden,
                dropout=dropout,
                activation=activation,
                context_features=context_features,
                log_scale_bound=log_scale_bound,
            )
        )
    return Flow(Compose(*steps), StandardNormal(features) if base is None else base)
