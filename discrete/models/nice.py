from collections.abc import Sequence

from torch import Tensor

from core.bases import StandardLogistic
from core.density import DensityModel
from core.shapes import vector_size
from discrete.bijection import Compose
from discrete.bijections.coupling import AdditiveCoupling
from discrete.bijections.linear import Diagonal
from discrete.bijections.partition import MaskName
from discrete.flow import Flow


def NICE(
    event_shape: int | Sequence[int],
    *,
    layers: int = 4,
    masks: Sequence[MaskName | Tensor] = ("alternating", "alternating_flipped"),
    hidden: Sequence[int] = (512, 512),
    dropout: float = 0.0,
    context_features: int = 0,
    base: DensityModel | None = None,
) -> Flow:
    """NICE: additive couplings over any partitions, then one positive rescaling S of every coordinate.

    log p(x) = log p_base(f(x)) + Σ log S_ii: the couplings preserve volume.

    References:
        Dinh, Krueger, Bengio, "NICE: non-linear independent components estimation", 2014, sections 3.2-3.4.

    Checked by tests/contracts/densities.py.

    Args:
        event_shape: number of features, 2 or more.
        layers: number of couplings; 4 in the paper, three at least for every coordinate to steer every other.
        masks: partitions that the couplings take in turn, by name or as boolean tensors: any partition.
        hidden: widths of each coupling's network; five of 1000 in the paper's MNIST model.
        dropout: dropout probability in training.
        context_features: width of the context, 0 for none.
        base: density of the latent; the standard logistic of the paper where omitted.

    Returns:
        The flow.

    Raises:
        ValueError: an event that is no vector of 2 features or more, a mask that does not split it, or a base over
            another shape.

    Example:
        >>> import torch
        >>> NICE(6).log_prob(torch.zeros(10, 6)).shape
        torch.Size([10])
    """
    features = vector_size(event_shape, owner="NICE")
    if layers < 1 or not masks:
        raise ValueError(f"NICE needs 1 coupling and 1 mask or more, but has layers={layers} and masks={masks!r}.")
    couplings = [
        AdditiveCoupling(
            features,
            mask=masks[i % len(masks)],
            hidden=hidden,
            dropout=dropout,
            context_features=context_features,
        )
        for i in range(layers)
    ]
    return Flow(Compose(*couplings, Diagonal(features)), StandardLogistic(features) if base is None else base)
