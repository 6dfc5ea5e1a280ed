"""Invertible maps with their log-determinants: the contract, composition and inversion."""

import abc
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial, reduce, wraps
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from core.density import Kind, weakest
from core.precision import FULL, check_floating, check_inputs, guard, outside_autocast
from core.rng import Rng
from core.shapes import as_event_shape

Events = Shaped[Tensor, "rows ..."]  # (rows, *event)
Context = Float[Tensor, "rows features"] | None
Mapped = tuple[Float[Tensor, "rows ..."], Float[Tensor, " rows"]]  # the image, and the log-det of this direction, nats


@dataclass(frozen=True)
class Direction:
    """What one direction of a bijection costs and whether its log-determinant is exact.

    Attributes:
        passes: network evaluations it takes, by their multiply-adds.
        kind: `exact`, `estimate` or `bound`, for the log-determinant.
        steps: parts of them that must wait for one another; as many as passes where omitted.
    """

    passes: int = 1
    kind: Kind = "exact"
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.steps is None:
            object.__setattr__(self, "steps", self.passes)

    def __add__(self, other: "Direction") -> "Direction":
        steps = (self.steps or 0) + (other.steps or 0)
        return Direction(self.passes + other.passes, weakest(self.kind, other.kind), steps)


class Bijection(nn.Module, abc.ABC):
    """An invertible map z = f(x) between events, data to noise.

    Both directions return the log-determinant of the map just called, always `(rows,)`, so that the two are each
    other's negative at the same point. Rows never mix. Both compute in the dtype of the rows, autocast or not.

    Args:
        event_shape: shape of one event x on the data side; an int is a vector.
        latent_shape: shape of z on the noise side; the event shape where omitted.
    """

    forward_direction: Direction = Direction()
    inverse_direction: Direction = Direction()

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        guard(cls, ["forward"], partial(_in_full, events="x"))
        guard(cls, ["inverse"], partial(_in_full, events="z"))

    def __init__(self, event_shape: int | Sequence[int], *, latent_shape: int | Sequence[int] | None = None) -> None:
        super().__init__()
        self.event_shape = as_event_shape(event_shape)
        self.latent_shape = self.event_shape if latent_shape is None else as_event_shape(latent_shape)

    @abc.abstractmethod
    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """Data to noise: z = f(x), and log|det dz/dx| in nats, `(rows,)`."""

    @abc.abstractmethod
    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """Noise to data: x = f⁻¹(z), and log|det dx/dz| in nats, `(rows,)`."""


def _in_full(mapping: Callable[..., Any], *, events: str) -> Callable[..., Any]:
    """The mapping outside of autocast, of events in float32 or float64; a surjection takes whole numbers as well."""

    @wraps(mapping)
    def checked(self: Any, *args: Any, **keywords: Any) -> Any:
        x = args[0] if args else keywords[events]
        if x.dtype not in FULL and self.forward_direction.kind != "bound":
            check_floating(x, owner=type(self).__name__, name=events)
        try:
            return mapping(self, *args, **keywords)
        except (RuntimeError, TypeError):
            # What torch says of a layer in float32 and rows in float64 names neither.
            if x.dtype in FULL:
                context = keywords.get("context", args[1] if len(args) > 1 else None)
                check_inputs(self, owner=type(self).__name__, **{events: x, "context": context})
            raise

    return outside_autocast(checked)


class Fusible(Bijection, abc.ABC):
    """A bijection that a composition maps in one call with its neighbours, for less than one by one."""

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """z and log|det dz/dx|."""
        return self.fused((), x, context, inverse=False)

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """x and log|det dx/dz|."""
        return self.fused((), z, context, inverse=True)

    @property
    @abc.abstractmethod
    def fusion_key(self) -> Hashable:
        """Equal for neighbours that go in one call; None for a layer that goes alone, as one that draws must."""

    @abc.abstractmethod
    def fused(self, others: Sequence["Bijection"], x: Events, context: Context, *, inverse: bool) -> Mapped:
        """This layer and then others of its key, or their inverses in this order, with the sum of log-determinants."""


def chain(
    bijections: Iterable[nn.Module], x: Tensor, context: Tensor | None, *, generator: Rng = None, inverse: bool = False
) -> Mapped:
    """One bijection after another, or the inverses from the last to the first; their log-determinants add."""
    layers: list[Any] = list(bijections)
    log_dets = []
    for group in _groups(layers[::-1] if inverse else layers):
        if len(group) > 1:
            x, log_det = _fused(group, x, context, inverse=inverse)
        elif inverse:
            x, log_det = group[0].inverse(x, context, generator=generator)
        else:
            x, log_det = group[0](x, context, generator=generator)
        log_dets.append(log_det)
    return x, reduce(torch.add, log_dets)


def _groups(layers: list[Any]) -> list[list[Any]]:
    """The layers in their order, those together that go in one call."""
    if _has_any_global_hook():
        return [[layer] for layer in layers]
    groups: list[list[Any]] = []
    last: Hashable = None
    for layer in layers:
        key = layer.fusion_key if isinstance(layer, Fusible) and _is_plain(layer) else None
        if key is not None and key == last:
            groups[-1].append(layer)
        else:
            groups.append([layer])
        last = key
    return groups


def _is_plain(layer: Fusible) -> bool:
    """Whether nothing would miss its call: no hook, no graph of its own, no method put in the place of these two."""
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        return False
    if layer._compiled_call_impl:
        return False
    methods = (layer.forward, Fusible.forward), (layer.inverse, Fusible.inverse)
    return all(getattr(method, "__func__", None) is original for method, original in methods)


def _fused(layers: list[Fusible], x: Tensor, context: Tensor | None, *, inverse: bool) -> Mapped:
    try:
        return layers[0].fused(layers[1:], x, context, inverse=inverse)
    except (RuntimeError, TypeError):
        for layer in layers:
            check_inputs(layer, owner=type(layer).__name__, **{"z" if inverse else "x": x, "context": context})
        raise


class Compose(Bijection):
    """f = f_n ∘ ... ∘ f_1: bijections in the order in which data meet them; log-determinants add.

    Checked by tests/contracts/bijections.py.

    Args:
        bijections: one or more, the latent shape of each the event shape of the next.

    Raises:
        ValueError: no bijection, or two neighbours whose shapes do not fit.
    """

    def __init__(self, *bijections: Bijection) -> None:
        if not bijections:
            raise ValueError("Compose needs at least one bijection, but none was given.")
        for i, (first, second) in enumerate(pairwise(bijections)):
            if first.latent_shape != second.event_shape:
                raise ValueError(
                    f"Compose cannot join bijection {i} ({type(first).__name__}), which gives events of shape "
                    f"{tuple(first.latent_shape)}, to {type(second).__name__}, which takes {tuple(second.event_shape)}."
                )
        super().__init__(bijections[0].event_shape, latent_shape=bijections[-1].latent_shape)
        self.bijections = nn.ModuleList(bijections)
        self.forward_direction = sum((b.forward_direction for b in bijections), Direction(0))
        self.inverse_direction = sum((b.inverse_direction for b in bijections), Direction(0))

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """Applies f_1 first."""
        return chain(self.bijections, x, context, generator=generator)

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """Applies f_n⁻¹ first."""
        return chain(self.bijections, z, context, generator=generator, inverse=True)


class Inverse(Bijection):
    """f⁻¹ as a bijection of its own: forward and inverse swapped.

    Checked by tests/contracts/bijections.py.

    Raises:
        ValueError: the bijection is a surjection such as `Dequantization`, which has no inverse of this kind.
    """

    def __init__(self, bijection: Bijection) -> None:
        if bijection.forward_direction.kind == "bound":
            raise ValueError(f"Inverse takes a bijection, but {type(bijection).__name__} is a surjection.")
        super().__init__(bijection.latent_shape, latent_shape=bijection.event_shape)
        self.bijection = bijection
        self.forward_direction = bijection.inverse_direction
        self.inverse_direction = bijection.forward_direction

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """The inverse of the wrapped bijection."""
        return self.bijection.inverse(x, context, generator=generator)

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """The forward of the wrapped bijection."""
        return self.bijection(z, context, generator=generator)
