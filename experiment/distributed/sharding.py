"""Parameters, gradients, moments and averages of which each process holds a share, by torch's `fully_shard`."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from discrete import BatchNorm
from experiment.distributed.ranks import Ranks
from experiment.errors import UserError


def check_shardable(objective: nn.Module, ranks: Ranks) -> None:
    """Refuses what cannot be shared out.

    Raises:
        UserError: one process, or batch normalization, whose statistics are gathered past the objective.
    """
    if ranks.world == 1:
        raise UserError("--shard shares a model out to several processes, but there is one; start them by torchrun.")
    if any(isinstance(module, BatchNorm) for module in objective.modules()):
        raise UserError("--shard does not go with batch normalization; set model.normalization to another.")


def share_out(objective: nn.Module, units: Iterable[str], *, device: torch.device) -> None:
    """Leaves each process its share of every parameter; a unit's are gathered while it computes, and no others.

    References:
        Zhao et al., "PyTorch FSDP: experiences on scaling fully sharded data parallel", 2023.

    Checked by tests/experiment/distributed/test_sharding.py.

    Args:
        objective: whose parameters become `DTensor`s.
        units: names of submodules, as of `first_look`.
        device: where the shares go.

    Raises:
        UserError: parameters that `fully_shard` does not take, as those without a dimension.
    """
    from torch.distributed.device_mesh import init_device_mesh  # seconds, which other trainings need not wait for
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for parameter in objective.parameters():
        parameter.data = parameter.data.contiguous()  # convolutions may lie channels last, which shares cannot
    try:
        for name in units:
            fully_shard(objective.get_submodule(name), mesh=mesh)
        fully_shard(objective, mesh=mesh)
    except ValueError as error:
        raise UserError(f"--shard cannot share this model out: {error}") from error


def whole(state: Any) -> Any:
    """A state with whole tensors, on the CPU where they were shared out; every process takes part."""
    if is_shared(state):
        return state.full_tensor().cpu()
    if isinstance(state, dict):
        return type(state)((key, whole(value)) for key, value in state.items())
    return [whole(value) for value in state] if isinstance(state, list) else state


def is_shared(value: Any) -> bool:
    """Whether this process holds a share of a tensor."""
    return isinstance(value, Tensor) and hasattr(value, "device_mesh")


def shared_like(value: Tensor, owner: Any) -> Tensor:
    """A whole tensor, shared out as another is; itself where that one is whole."""
    if not is_shared(owner) or value.shape != owner.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(owner.device), owner.device_mesh, owner.placements)


def load_whole(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Loads whole tensors into a module that may be shared out."""
    own = module.state_dict()
    module.load_state_dict({key: shared_like(value, own.get(key, value)) for key, value in state.items()})


def load_moments(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads the state of an optimiser whose parameters may be shared out."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        index: {name: shared_like(value, parameters[index]) for name, value in of.items()}
        for index, of in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})


def check_gradients(objective: nn.Module, reached: Iterable[str]) -> None:
    """Refuses a backward pass that went past the shares, as one that names the parameters itself may.

    Args:
        objective: after the backward pass.
        reached: the parameters that its gradient reached before they were shared out.

    Raises:
        UserError: one of them has no gradient.
    """
    if any(objective.get_parameter(name).grad is None for name in reached):
        raise UserError("--shard cannot train this model: the gradient of its parameters does not reach the shares.")
