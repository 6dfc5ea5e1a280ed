"""Glow beside that of normflows, the same density with the same weights, and beside the networks of both alone."""

import copy
import importlib.metadata
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.flow_peers import Rival, Run, ratio, seconds
from benchmarks.peers import prepare, runs_of
from discrete import AffineCoupling, Glow

BUDGET, THREADS, TOLERANCE = 15.0, (1, 2), 1e-8
MEASURED = ("log_prob", "training step")  # draws by such weights overflow at 3×32×32, in both

Row = dict[str, Any]


class Case(NamedTuple):
    """An architecture and a batch."""

    event_shape: tuple[int, int, int]
    levels: int
    depth: int
    hidden: int
    rows: int


class Twins(NamedTuple):
    """The same density, here and in normflows."""

    ours: nn.Module
    theirs: nn.Module


class Networks(nn.Module):
    """The networks of a flow's couplings, each on what it sees of these rows: what no such flow can do without."""

    def __init__(self, flow: nn.Module, x: Tensor) -> None:
        super().__init__()
        flow = copy.deepcopy(flow)  # whose weights steps of these would change
        self.networks = nn.ModuleList(m.conditioner for m in flow.modules() if isinstance(m, AffineCoupling))
        self.seen: list[Tensor] = []
        hooks = [m.register_forward_pre_hook(lambda _, given: self.seen.append(given[0])) for m in self.networks]
        with torch.no_grad():
            flow.log_prob(x)
        for hook in hooks:
            hook.remove()
        self.seen = [steering.clone().requires_grad_() for steering in self.seen]

    def log_prob(self, x: Tensor, context: None = None) -> Tensor:
        """The sum of all outputs, of gradients in the inputs too."""
        for steering in self.seen:
            steering.grad = None
        return torch.stack([m(h, None).sum() for m, h in zip(self.networks, self.seen, strict=True)])


CASES = (Case((1, 28, 28), 2, 6, 64, 64), Case((3, 32, 32), 3, 4, 128, 32))


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a case, number of threads and task.

    Raises:
        RuntimeError: the two do not give the same log-density, so that their times say nothing.
    """
    load = prepare()  # without it either is up to half slower in some runs and not in others
    rows = []
    for case in CASES:
        x = torch.randn(case.rows, *case.event_shape, generator=torch.Generator().manual_seed(0))
        exact = twins(case)
        about = {**case._asdict(), "log_prob_difference_nats": checked_difference(exact, x.double())}
        models = Twins(*(model.float() for model in exact))
        about |= {"parameters_ours": _size(models.ours), "parameters_theirs": _size(models.theirs)}
        rivals = {**_rivals(models), "bare": _bare(Networks(models.ours, x), x)}
        for threads in THREADS:
            torch.set_num_threads(threads)
            rows += [
                {**about, "threads": threads, "task": task, **_times(runs_of(task, rivals, x))} for task in MEASURED
            ]
    settings = {"normflows": importlib.metadata.version("normflows"), "dtype": "float32"}
    return {**settings, "load_average_at_start": load}, rows


def twins(case: Case) -> Twins:
    """Both in float64, away from their initial values, with the same weights.

    A `Split` here has a learned Gaussian that a merge there lacks; it stays as it starts, at the standard normal.
    """
    ours = Glow(
        case.event_shape,
        levels=case.levels,
        depth=case.depth,
        hidden=(case.hidden, case.hidden),
        scale="sigmoid",
    ).double()
    theirs = normflows_glow(case).double()
    generator = torch.Generator().manual_seed(0)
    for level, peer_level in zip(ours.bijection.levels, reversed(theirs.flows), strict=True):
        steps = list(level.bijections)[1:]  # behind the squeeze
        for i, block in enumerate(reversed(peer_level[:-1])):
            step = steps[3 * i : 3 * i + 3]
            _perturb(*step, generator=generator)
            _copy_step(*step, block)
    return Twins(ours, theirs)


def normflows_glow(case: Case) -> nn.Module:
    """The same architecture in normflows, whose levels and layers go from noise to data."""
    import normflows

    channels, height, width = case.event_shape
    bases, levels, merges = [], [], []
    for i in reversed(range(case.levels)):
        shape = (channels * 2 ** (i + 2), height // 2 ** (i + 1), width // 2 ** (i + 1))
        blocks = [
            normflows.flows.GlowBlock(shape[0], case.hidden, split_mode="channel", scale=True, use_lu=True)
            for _ in range(case.depth)
        ]
        levels.append([*blocks, normflows.flows.Squeeze()])
        coarsest = i == case.levels - 1
        merges += [] if coarsest else [normflows.flows.Merge()]
        latent = shape if coarsest else (shape[0] // 2, *shape[1:])
        bases.append(normflows.distributions.DiagGaussian(latent, trainable=False))
    return normflows.MultiscaleFlow(bases, levels, merges)


def checked_difference(models: Twins, x: Tensor) -> float:
    """The largest difference in log p over the rows, nats.

    Raises:
        RuntimeError: it is above the tolerance.
    """
    with torch.no_grad():
        ours, theirs = (rival.log_prob(x) for rival in _rivals(models).values())
    difference = (ours - theirs).abs().max().item()
    if not difference < TOLERANCE:
        raise RuntimeError(f"the two flows differ by {difference:g} nats, so their times are not those of one density.")
    return difference


@torch.no_grad()
def _perturb(norm: nn.Module, convolution: nn.Module, coupling: nn.Module, *, generator: torch.Generator) -> None:
    last = coupling.conditioner.layers[-1]
    for p in (*norm.parameters(), *convolution.parameters(), *last.parameters()):
        p += 0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    norm.initialised.fill_(True)


@torch.no_grad()
def _copy_step(norm: nn.Module, convolution: nn.Module, coupling: nn.Module, block: nn.Module) -> None:
    """Theirs is x = exp(s) z + t for ActNorm, whose s and t are -s and -b of ours."""
    peer_coupling, peer_convolution, peer_norm = block.flows
    peer_norm.s.copy_(-norm.log_scale)
    peer_norm.t.copy_(-norm.bias)
    peer_norm.data_dep_init_done.fill_(1.0)
    copy_lu(convolution.weight, peer_convolution)
    _copy_network(coupling.conditioner, peer_coupling.flows[1].param_map)


@torch.no_grad()
def copy_lu(weight: nn.Module, convolution: nn.Module) -> None:
    """W = P L U, taken apart in both."""
    factors = weight.factors
    convolution.P.copy_(torch.eye(len(factors)).index_select(0, weight.order))
    convolution.L.copy_(factors.tril(-1))
    convolution.U.copy_(factors.triu(1))
    convolution.log_S.copy_(factors.diagonal())
    convolution.sign_S.copy_(weight.sign)


@torch.no_grad()
def _copy_network(ours: nn.Module, theirs: nn.Module) -> None:
    """Ours is z = x s + t, theirs z = (x - m) s, one where t = -m s: channels in turn get t = 0 and a constant s."""
    convolutions, peers = ([m for m in net.modules() if isinstance(m, nn.Conv2d)] for net in (ours, theirs))
    for convolution, peer in zip(convolutions[:-1], peers[:-1], strict=True):
        peer.load_state_dict(convolution.state_dict())
    last, peer = convolutions[-1], peers[-1]  # a, t, a, t, ... here and m, a, m, a, ... there
    last.weight[1::4] = last.bias[1::4] = last.weight[2::4] = 0
    s = torch.sigmoid(last.bias[0::2] + 2)
    for theirs_last, ours_last in ((peer.weight, last.weight), (peer.bias, last.bias)):
        theirs_last[1::2] = ours_last[0::2]
        theirs_last[0::2] = -ours_last[1::2] / s.reshape(-1, *(1 for _ in ours_last.shape[1:]))


def _rivals(models: Twins) -> dict[str, Rival]:
    ours, theirs = models
    return {
        "ours": Rival(ours, ours.log_prob, lambda rows: ours.sample((rows,))),
        "theirs": Rival(theirs, lambda x: theirs.log_prob(x, None), lambda rows: theirs.sample(rows)[0]),
    }


def _bare(networks: Networks, x: Tensor) -> Rival:
    return Rival(networks, networks.log_prob, lambda rows: networks.log_prob(x))


def _times(runs: dict[str, Run]) -> Row:
    taken = seconds(runs, budget=BUDGET)
    faster, quartiles = ratio(taken["theirs"], taken["ours"])
    return {
        "rounds": len(taken["ours"]),
        **{f"{name}_ms": 1e3 * median(times) for name, times in taken.items()},
        "ratio": faster,
        "ratio_quartiles": quartiles,
        "over_bare": ratio(taken["ours"], taken["bare"])[0],
        "theirs_over_bare": ratio(taken["theirs"], taken["bare"])[0],
    }


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
