"""Masked networks unit by unit in the order of their degrees: what becomes known together is computed once, then."""

from collections.abc import Callable
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from core.modes import inferring

if TYPE_CHECKING:
    from core.nets.masked import MaskedMLP, Node

BLOCK, SMALLEST, LARGEST = 64, 8, 32  # units of a layer, and degrees that hold them
MANY = 25_000  # multiply-adds of what a degree reads of one other: from here on products with zeros are dear


class Layer(NamedTuple):
    """A node with its units and those of its source in the order of their degrees.

    Attributes:
        node: the node.
        weight: `(units, source units)`; its mask is a staircase, so that slices of it need none.
        bias: `(units, 1)`.
    """

    node: "Node"
    weight: Tensor
    bias: Tensor


class Plan:
    """The units of every value of a network in the order of their degrees, under one mask.

    Attributes:
        counts: for each value and degree 0..D, how many of its units have it.
        upto: for each value and m from -1 to D, how many of its units have a degree up to m, counted from m = -1.
        features: the feature of each degree 1..D.
    """

    def __init__(self, network: "MaskedMLP", mask: int) -> None:
        D = network.features
        degrees = network.value_degrees(mask)
        sorting = network.sorting[mask].split(network.widths)
        self.orders = [None if _is_sorted(d) else order for d, order in zip(degrees, sorting, strict=True)]
        self.counts: list[list[int]] = [torch.bincount(d, minlength=D + 1).tolist() for d in degrees]
        self.upto = [[0, *accumulate(counts)] for counts in self.counts]
        self.features: list[int] = degrees[0][:D].argsort().tolist()
        self.layers = [
            Layer(node, self._sorted(linear.weight, i, node.source), self.sorted_rows(linear.bias[:, None], i))
            for i, (node, linear) in enumerate(zip(network.nodes, network.masked_linears(), strict=True), 1)
        ]

    def sorted_rows(self, values: Tensor, i: int) -> Tensor:
        """`values` of the units of value i, `(units, ...)`, in the order of their degrees."""
        order = self.orders[i]
        return values if order is None else values.index_select(0, order)

    def _sorted(self, weight: Tensor, i: int, source: int) -> Tensor:
        order = self.orders[source]
        weight = self.sorted_rows(weight, i)
        return weight if order is None else weight.index_select(1, order)

    def units(self, value: int, m: int) -> slice:
        """The units of degree m."""
        return slice(self.upto[value][m], self.upto[value][m + 1])

    def between(self, value: int, low: int, high: int) -> slice:
        """The units of a degree from low to below high."""
        upto = self.upto[value]
        return slice(upto[low], upto[min(high, len(upto) - 1)])

    def known(self, value: int, m: int) -> slice:
        """The units of a degree up to m."""
        return slice(0, self.upto[value][m + 1])

    def above(self, value: int, m: int) -> slice:
        """The units of a degree above m."""
        return slice(self.upto[value][m + 1], None)


@inferring
def sweep(
    network: "MaskedMLP", choose: Callable[[slice, Tensor], Tensor], rows: int, context: Tensor | None, *, mask: int
) -> Tensor:
    """See `MaskedMLP.sweep`. Values are `(units, rows)`, so that the units of one degree are contiguous.

    What a block of degrees reads of all degrees before it is one large product; what they read of one another is left
    to the steps, where those of them that are not known yet are zero, or left out where these would be many numbers.
    """
    plan = Plan(network, mask)
    hidden = (layer.node.width for layer in plan.layers if not layer.node.is_output)
    units_of_degree = max(hidden, default=network.features) / network.features
    many = rows * units_of_degree**2 > MANY
    size = SMALLEST if many else max(SMALLEST, min(LARGEST, int(BLOCK / units_of_degree)))
    raw = [plan.layers[0].weight.new_empty(width, rows) for width in network.widths]
    raw[0].zero_()
    skipped = {layer.node.skip for layer in plan.layers}
    apart = {i for i in range(1, len(raw) - 1) if i in skipped or not many}
    active = [torch.zeros_like(v) if i in apart else v for i, v in enumerate(raw)]
    if context is not None:
        raw[0][: network.context_features] = context.T
    # Views of many degrees at once: one by one they would cost more than the products of them.
    raw_units, active_units = ([v.split(plan.counts[i]) for i, v in enumerate(values)] for values in (raw, active))
    x = raw[0][network.context_features :].unsqueeze(-1).unbind()
    thetas = raw[-1].unflatten(0, (network.features, 1, -1)).permute(0, 3, 1, 2).unbind()
    activate, block = network.activation.forward, list[tuple[tuple[Tensor, ...], Tensor]]()
    rectified = isinstance(network.activation, nn.ReLU)
    for m, feature in enumerate(plan.features):
        if m % size == 0:
            block = []
            for i, (node, weight, bias) in enumerate(plan.layers, 1):
                first, source = m + node.is_output, active[node.source]
                units, known = plan.between(i, first, first + size), plan.known(node.source, m - 1)
                torch.addmm(bias[units], weight[units, known], source[known], out=raw[i][units])
                inside = plan.between(node.source, m, m + size)
                block.append((weight[units, inside].split(plan.counts[i][first : first + size]), source[inside]))
        for i, ((node, _, _), (weights, source)) in enumerate(zip(plan.layers, block, strict=True), 1):
            degree = m + node.is_output
            if not plan.counts[i][degree]:
                continue
            y, weight = raw_units[i][degree], weights[m % size]
            if many:
                count = plan.upto[node.source][m + 1] - plan.upto[node.source][m - m % size]
                weight, source = weight.narrow(1, 0, count), source.narrow(0, 0, count)
            torch.addmm(y, weight, source, out=y)
            if node.skip is not None:
                y += raw_units[node.skip][degree]
            if rectified and not node.is_output:
                torch.clamp(y, min=0, out=active_units[i][degree])
            elif not node.is_output:
                result = activate(y)
                if i in apart or result is not y:
                    active_units[i][degree].copy_(result)
        x[m].copy_(choose(slice(feature, feature + 1), thetas[m]))
    return raw[0][network.context_features :].index_select(0, network.places[mask]).T.contiguous()


@torch.no_grad()
def solve_transposed(
    network: "MaskedMLP", x: Tensor, context: Tensor | None, s: Tensor, t: Tensor, g: Tensor, *, mask: int
) -> Tensor:
    """See `MaskedMLP.solve_transposed`: back-propagation that learns v_d just before it hands it down."""
    plan = Plan(network, mask)
    hidden = [i for i, layer in enumerate(plan.layers, 1) if not layer.node.is_output]
    values = network.values(x, context, mask=mask)
    slopes = {i: plan.sorted_rows(_slope(network.activation, values[i]).T, i) for i in hidden}
    deltas = [x.new_empty(width, len(x)) for width in network.widths]
    outputs = [i for i, layer in enumerate(plan.layers, 1) if layer.node.is_output]
    s, t, g = s.T, t.permute(1, 2, 0), g.T
    v = torch.empty_like(s)
    for m in range(network.features, 0, -1):
        for i in reversed(hidden):
            units = plan.units(i, m)
            if units.start < units.stop:
                deltas[i][units] = slopes[i][units] * _pulled(plan, deltas, i, units, m)
                for j, layer in enumerate(plan.layers, 1):
                    if layer.node.skip == i:
                        deltas[i][units] += deltas[j][units]
        feature, units = plan.features[m - 1], plan.units(0, m)
        v[feature] = (g[feature] - _pulled(plan, deltas, 0, units, m)[0]) / s[feature]
        for i in outputs:
            deltas[i][plan.units(i, m)] = v[feature] * t[feature]
    return v.T.contiguous()


def _pulled(plan: Plan, deltas: list[Tensor], value: int, units: slice, m: int) -> Tensor:
    """Σ Wᵀ δ over the nodes that read these units, which have degree m."""
    total = deltas[value].new_zeros(units.stop - units.start, deltas[value].shape[1])
    for i, (node, weight, _) in enumerate(plan.layers, 1):
        if node.source == value:
            readers = plan.above(i, m if node.is_output else m - 1)
            total.addmm_(weight[readers, units].T, deltas[i][readers])
    return total


def _slope(activation: nn.Module, value: Tensor) -> Tensor:
    """Derivative of the activation."""
    with torch.enable_grad():
        leaf = value.detach().clone().requires_grad_()
        return torch.autograd.grad(activation(leaf.clone()).sum(), leaf)[0]


def _is_sorted(degrees: Tensor) -> bool:
    return bool((degrees[1:] >= degrees[:-1]).all())
