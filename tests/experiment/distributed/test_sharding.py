"""Processes that hold a share of the model each train as those that hold a copy."""

import pytest
import ranked
import torch
from ranked import FLOW, SCORE, difference, weights
from torch import nn

from experiment import load_run, train
from experiment.distributed import first_look
from experiment.distributed.sharding import check_gradients
from experiment.errors import UserError
from experiment.training.checkpoint import load_checkpoint

SHARED = [name for name in ranked.MODELS if name not in ("batchnorm", "scalars")]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    out = tmp_path_factory.mktemp("shared")
    assert ranked.launch(ranked.train_all, out, SHARED, 1, True)[0] == [0, 0]
    return out


@pytest.mark.parametrize("model", SHARED)
def test_two_processes_with_a_share_each_are_one_process_with_two_parts(by_two, model):
    one = ranked.trained(model, parts=2)
    for rank in range(2):
        assert difference(one, torch.load(by_two / f"{model}.{rank}.pt")) < 1e-12


def test_each_process_holds_its_share_of_parameters_averages_and_moments(tmp_path):
    assert ranked.launch(ranked.held, "denoising", tmp_path)[0] == [0, 0]
    (first, count), (second, same) = (torch.load(tmp_path / f"held.{rank}.pt") for rank in range(2))
    assert first + second == count == same
    assert abs(first - second) < 0.1 * count


@pytest.mark.parametrize("begins_shared", [True, False], ids=["from shares", "to shares"])
def test_a_training_goes_on_with_or_without_shares(tmp_path, begins_shared):
    config, run = ranked.toy(SCORE), tmp_path / "run"
    assert ranked.launch(ranked.stop_at_five, config, run, begins_shared)[0] == [0, 0]
    assert ranked.launch(ranked.train_run, config, run, not begins_shared)[0] == [0, 0]
    whole = train(ranked.toy(SCORE, parts=2), tmp_path / "whole", threads=1)
    assert difference(weights(whole.path), weights(run)) < 1e-6


def test_the_checkpoints_of_shares_are_whole(tmp_path):
    run = tmp_path / "run"
    assert ranked.launch(ranked.train_run, ranked.toy(FLOW), run, True)[0] == [0, 0]
    assert load_run(run).log_prob(torch.zeros(3, 2)).isfinite().all()
    whole = load_checkpoint(train(ranked.toy(FLOW, parts=2), tmp_path / "whole", threads=1).last)
    last = load_checkpoint(run / "last.ckpt")
    assert last.keys() == whole.keys()
    for part in ("model", "ema", "optimizer", "watch", "generator"):
        assert difference(last[part], whole[part]) < 1e-6


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("batchnorm", "--shard does not go with batch normalization; set model.normalization to another."),
        ("scalars", "--shard cannot share this model out: fully_shard doesn't support scalar parameters."),
    ],
)
def test_what_cannot_be_shared_out_is_refused(tmp_path, model, why):
    statuses, said = ranked.launch(ranked.train_all, tmp_path, [model], 1, True)
    assert statuses == [1, 1]
    assert f"error: {why}" in said
    assert "Traceback" not in said


def test_convolutions_whose_channels_lie_last_are_shared_out(tmp_path):
    assert ranked.launch(ranked.share_channels_last, tmp_path)[0] == [0, 0]


def test_one_process_has_nobody_to_share_with(tmp_path):
    with pytest.raises(UserError, match="--shard shares a model out to several processes, but there is one"):
        train(ranked.toy(FLOW), tmp_path / "run", shard=True)


def test_a_first_look_finds_what_moves_what_is_reached_and_what_can_be_shared_out(monkeypatch):
    """Units are the outermost large layers of lists that are called once."""
    monkeypatch.setattr(first_look, "SMALLEST_UNIT", 5)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(
                [nn.Sequential(nn.Linear(2, 2), nn.Tanh()), nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)]
            )
            self.head = nn.Linear(2, 2)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("still", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            first, again, by_hand, small = self.blocks
            return small(self.head(again(again(first(x)))) @ by_hand.weight).sum()

    net = Net()
    look = first_look.first_look(net, lambda: net(torch.ones(1, 2)))
    assert look.units == ("blocks.0",)
    assert look.moving == ("calls",)
    assert look.reached == {name for name, _ in net.named_parameters()} - {"blocks.2.bias"}
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


def test_a_gradient_that_misses_the_shares_is_refused():
    net = nn.Linear(2, 1)
    net(torch.ones(1, 2)).sum().backward()
    check_gradients(net, ["weight", "bias"])
    net.bias.grad = None
    check_gradients(net, ["weight"])
    with pytest.raises(UserError, match="the gradient of its parameters does not reach the shares"):
        check_gradients(net, ["weight", "bias"])
