"""MADE's network: masks over the weights make the outputs of a feature a function of the features before it alone."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core.nets import sweep
from core.nets.mlp import activation_layer, check_context, join_context
from core.shapes import as_permutation
from core.staircase import Stair, staircase_linear, stairs_of

FeatureOrder = Literal["natural", "reversed", "random"] | Tensor
HiddenDegrees = Literal["sequential", "random"]
Choose = Callable[[slice, Tensor], Tensor]
MaskNumber = int | Int[Tensor, "1"]  # a tensor spares the host a wait


class Node(NamedTuple):
    """A masked linear layer and what it reads: value 0 is (x, context), value i + 1 the output of node i.

    Attributes:
        source: the value that it reads, through the activation unless it is value 0.
        width: of its output.
        skip: a value that is added to its output, or None.
        is_output: whether its units belong to features.
    """

    source: int
    width: int
    skip: int | None = None
    is_output: bool = False


class MaskedLinear(nn.Module):
    """y = (W ⊙ M) x + b, with one or several masks M over the same weights.

    Under one mask that makes stairs, as where neighbours have neighbouring degrees, a large layer leaves out what
    these spare, see `staircase_linear`.

    Checked by tests/core/test_masked.py and tests/core/test_staircase.py.

    Args:
        in_features: units that it reads.
        out_features: its own units.
        masks: number of masks.
        repeats: how many times the rows of M repeat, one block below the other: once a parameter of a feature.
        zero: whether weights and biases start at zero.
    """

    mask: Tensor

    def __init__(
        self, in_features: int, out_features: int, *, masks: int = 1, repeats: int = 1, zero: bool = False
    ) -> None:
        super().__init__()
        linear = nn.Linear(in_features, out_features)
        self.weight, self.bias = linear.weight, linear.bias
        if zero:
            nn.init.zeros_(self.weight)
            nn.init.zeros_(self.bias)
        self.repeats = repeats
        self.stairs: list[Stair] = []
        self.register_buffer("mask", torch.ones(masks, out_features, in_features), persistent=False)

    def set_mask(self, mask: int, reads: Bool[Tensor, "out_features in_features"]) -> None:
        """Which units each unit reads under the mask of this number."""
        self.mask[mask] = reads.to(self.mask)
        part = reads[: len(reads) // self.repeats]
        self.stairs = stairs_of(part, repeats=self.repeats) if len(self.mask) == 1 else []

    def forward(
        self, x: Float[Tensor, "rows in_features"], *, mask: MaskNumber = 0
    ) -> Float[Tensor, "rows out_features"]:
        """y under the mask of this number."""
        M = self.mask[mask] if isinstance(mask, int) else self.mask.index_select(0, mask)[0]
        return staircase_linear(x, self.weight * M, self.bias, self.stairs, repeats=self.repeats)


class MaskedMLP(nn.Module):
    """θ_d = g_d(x_<d, context): k outputs for each of D features, which see the features before it alone.

    Every unit has a degree: a feature its place 1..D in the order, the context 0, a hidden unit a number below D. A
    hidden unit reads units of a degree up to its own, the outputs of a feature units of a degree below it.

    References:
        Germain, Gregor, Murray, Larochelle, "MADE: masked autoencoder for distribution estimation", 2015, eq. 8-13 and
        section 4; with residual blocks, Durkan et al., "Neural spline flows", 2019, appendix B.

    Checked by tests/core/test_masked.py.

    Args:
        features: number D of features.
        parameters_per_feature: number k of outputs a feature.
        hidden: widths of the hidden layers, or of the residual blocks, which then are equal.
        order: `natural`, `reversed`, `random`, or the indices of the features in the order in which they come.
        hidden_degrees: `sequential`, as many units of each degree, or `random`, uniform from the lowest degree of the
            layer before, which leaves out some dependences of features on one another.
        conditioner: `plain`, or `resnet` for pre-activation residual blocks.
        direct: whether outputs read the features before them linearly as well.
        context_features: width of the context, 0 for none.
        activation: name of the activation.
        dropout: probability of zeroing a hidden unit in training.
        zero_output: start with the last layer zero, so that the output is zero.
        masks: number of masks that share the weights, for order-agnostic training; each draws its random order and
            random degrees anew.
        generator: draws random orders and degrees.

    Raises:
        ValueError: a hidden width too small to hold every degree, blocks of different widths, a count below 1, an
            unknown name, or an order that is none.

    Note:
        The degrees live on the CPU and travel with the state dict, not with parameters and buffers: processes that
        train one network together draw them alike, from the same seed or a `generator`.

    Example:
        The output of the first feature is constant, that of the second depends on the first.

        >>> network = MaskedMLP(2, hidden=(8,))
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 9.0]])
        >>> torch.equal(*network(x))
        True
    """

    sorting: Tensor  # for each mask, the order of each value's units by degree, `(masks, units)`
    places: Tensor  # place 0..D-1 of each feature, `(masks, features)`

    def __init__(
        self,
        features: int,
        parameters_per_feature: int = 1,
        *,
        hidden: Sequence[int] = (128, 128),
        order: FeatureOrder = "natural",
        hidden_degrees: HiddenDegrees = "sequential",
        conditioner: Literal["plain", "resnet"] = "plain",
        direct: bool = False,
        context_features: int = 0,
        activation: str = "relu",
        dropout: float = 0.0,
        zero_output: bool = False,
        masks: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.features, self.parameters_per_feature, self.masks = features, parameters_per_feature, masks
        self.context_features, self.dropout = context_features, nn.Dropout(dropout)
        lowest = 0 if context_features or features == 1 else 1
        self._check(hidden, least=features - lowest, conditioner=conditioner)
        # A skip reads a value again after its activation.
        self.activation = activation_layer(activation, overwrite=conditioner == "plain")
        self.nodes = _wire(hidden, features * parameters_per_feature, residual=conditioner == "resnet", direct=direct)
        self.widths = [features + context_features, *(node.width for node in self.nodes)]
        self.linears = nn.ModuleList(
            MaskedLinear(
                self.widths[node.source],
                node.width,
                masks=masks,
                repeats=parameters_per_feature if node.is_output else 1,
                zero=zero_output and node.is_output,
            )
            for node in self.nodes
        )
        draws = [
            self._draw_degrees(order, hidden_degrees, lowest, generator=generator, sort=masks == 1)
            for _ in range(masks)
        ]
        degrees = torch.stack(draws)
        # Beside the degrees on the CPU, which slices are made of, what the device needs: a sweep waits for no transfer.
        self.register_buffer("sorting", torch.empty_like(degrees), persistent=False)
        self.register_buffer("places", torch.empty_like(degrees[:, :features]), persistent=False)
        self.set_extra_state(degrees)

    def forward(
        self,
        x: Float[Tensor, "rows features"],
        context: Float[Tensor, "rows context"] | None = None,
        *,
        mask: MaskNumber = 0,
    ) -> Float[Tensor, "rows features parameters"]:
        """θ, `(rows, features, parameters_per_feature)`.

        Args:
            x: `(rows, features)`.
            context: `(rows, context_features)` or None.
            mask: number of the mask.

        Raises:
            ValueError: context given or missing against `context_features`.
        """
        values = self.values(x, context, mask=mask)
        # One parameter of all features lies together: elementwise maps then run along neighbours.
        return values[-1].unflatten(1, (self.parameters_per_feature, self.features)).movedim(1, 2)

    def values(self, x: Tensor, context: Tensor | None, *, mask: MaskNumber = 0) -> list[Tensor]:
        """Value 0, (x, context), and the output of every node, `(rows, units)`; some activated in place."""
        values = [join_context(x, context, self.context_features)]
        for node, linear in zip(self.nodes, self.linears, strict=True):
            h = values[node.source]
            if node.source:
                h = self.dropout(self.activation(h))
            y = linear(h, mask=mask)
            values.append(y if node.skip is None else y + values[node.skip])
        return values

    def sweep(
        self, choose: Choose, rows: int, context: Tensor | None = None, *, mask: int = 0
    ) -> Float[Tensor, "rows features"]:
        """x, feature by feature in the order: x_d = choose(d, θ_d(x_<d)), at the multiply-adds of one pass.

        Without gradient and without dropout.

        Args:
            choose: gives the feature `(rows, 1)` of this slice from its θ, `(rows, 1, parameters_per_feature)`.
            rows: number of rows.
            context: `(rows, context_features)` or None.
            mask: number of the mask.

        Raises:
            ValueError: context given or missing against `context_features`.
        """
        check_context(context, self.context_features)
        return sweep.sweep(self, choose, rows, context, mask=mask)

    def solve_transposed(
        self, x: Tensor, context: Tensor | None, s: Tensor, t: Tensor, g: Tensor, *, mask: int = 0
    ) -> Float[Tensor, "rows features"]:
        """v with (diag(s) + t ∂θ/∂x)ᵀ v = g, last feature first, at the multiply-adds of one backward pass.

        Args:
            x: where ∂θ/∂x is taken, `(rows, features)`.
            context: `(rows, context_features)` or None.
            s: `(rows, features)`, not zero.
            t: `(rows, features, parameters_per_feature)`.
            g: `(rows, features)`.
            mask: number of the mask.
        """
        return sweep.solve_transposed(self, x, context, s, t, g, mask=mask)

    @property
    def degrees(self) -> Int[Tensor, " features"]:
        """Place 1..D of each feature in the order of the first mask, on the CPU."""
        return self.value_degrees(0)[0][: self.features]

    def value_degrees(self, mask: int) -> tuple[Tensor, ...]:
        """Degrees of the units of every value under a mask, on the CPU."""
        return self._degrees[mask].split(self.widths)

    def get_extra_state(self) -> Int[Tensor, "masks units"]:
        """The degrees, which a state dict carries along: they say what the weights mean."""
        return self._degrees

    def set_extra_state(self, state: Int[Tensor, "masks units"]) -> None:
        """Takes the degrees and makes the masks anew."""
        if state.shape != (self.masks, sum(self.widths)):
            raise ValueError(
                f"the degrees of {self.masks} mask(s) over {sum(self.widths)} units are expected, but a state of shape "
                f"{tuple(state.shape)} was given: it belongs to a network of other widths or masks."
            )
        self._degrees = state.cpu().clone()
        self.places.copy_(self._degrees[:, : self.features] - 1)
        for i in range(self.masks):
            degrees = self.value_degrees(i)
            self.sorting[i] = torch.cat([d.argsort(stable=True) for d in degrees]).to(self.sorting.device)
            for node, linear, out in zip(self.nodes, self.masked_linears(), degrees[1:], strict=True):
                into = degrees[node.source]
                linear.set_mask(i, out[:, None] > into if node.is_output else out[:, None] >= into)

    def masked_linears(self) -> list[MaskedLinear]:
        """The layer of each node."""
        return cast(list[MaskedLinear], list(self.linears))

    def _check(self, hidden: Sequence[int], *, least: int, conditioner: str) -> None:
        if conditioner not in ("plain", "resnet"):
            raise ValueError(f"conditioner must be plain or resnet, but is {conditioner!r}.")
        counts = {"features": self.features, "parameters_per_feature": self.parameters_per_feature, "masks": self.masks}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be 1 or more, but is {count}.")
        if hidden and min(hidden) < least:
            raise ValueError(
                f"a hidden layer over {self.features} features needs a width of {least} or more, one unit a degree, "
                f"but hidden is {tuple(hidden)}."
            )
        if conditioner == "resnet" and len(set(hidden)) != 1:
            raise ValueError(f"residual blocks need equal widths, one a block, but hidden is {tuple(hidden)}.")

    def _draw_degrees(
        self, order: FeatureOrder, hidden: HiddenDegrees, lowest: int, *, generator: torch.Generator | None, sort: bool
    ) -> Tensor:
        D, residual = self.features, any(node.skip and not node.is_output for node in self.nodes)
        places = torch.empty(D, dtype=torch.long)
        places[_indices(order, D, generator)] = torch.arange(1, D + 1)
        degrees = [torch.cat([places, places.new_zeros(self.context_features)])]
        low = lowest
        for node in self.nodes:
            if node.is_output:
                drawn = places.repeat(self.parameters_per_feature)
            elif node.skip is not None:
                drawn = degrees[node.skip]
            elif hidden == "random":
                drawn = torch.randint(low, max(D, low + 1), (node.width,), generator=generator)
                # What a block holds inside never reaches the layers behind it without its stream.
                low = int(drawn.min()) if not residual or node.source == 0 else low
            elif hidden == "sequential":
                drawn = lowest + torch.arange(node.width) % (D - lowest)
            else:
                raise ValueError(f"hidden_degrees must be sequential or random, but is {hidden!r}.")
            # In the order of their degrees, units that become known together lie together.
            degrees.append(drawn if node.is_output or not sort else drawn.sort().values)
        return torch.cat(degrees)


def _wire(hidden: Sequence[int], outputs: int, *, residual: bool, direct: bool) -> list[Node]:
    nodes: list[Node] = []
    if residual:
        nodes.append(Node(0, hidden[0]))
        for width in hidden:
            stream = len(nodes)
            nodes += [Node(stream, width), Node(stream + 1, width, skip=stream)]
    else:
        nodes += [Node(i, width) for i, width in enumerate(hidden)]
    last = len(nodes)
    if direct and hidden:
        nodes.append(Node(0, outputs, is_output=True))
    return [*nodes, Node(last, outputs, skip=len(nodes) if direct and hidden else None, is_output=True)]


def _indices(order: FeatureOrder, features: int, generator: torch.Generator | None) -> Tensor:
    if isinstance(order, Tensor):
        return as_permutation(order, features).cpu()
    if order == "random":
        return torch.randperm(features, generator=generator)
    if order not in ("natural", "reversed"):
        raise ValueError(f"order must be natural, reversed, random or a tensor of indices, but is {order!r}.")
    natural = torch.arange(features)
    return natural if order == "natural" else natural.flip(0)
