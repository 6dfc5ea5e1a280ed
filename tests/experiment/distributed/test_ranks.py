"""Several processes train, evaluate and draw as one does."""

from datetime import timedelta

import numpy as np
import pytest
import ranked
import torch
from ranked import FLOW, PROBED, SCORE, difference, weights

from experiment import train
from experiment.distributed.meeting import fresh_store
from experiment.distributed.parts import Parts
from experiment.distributed.ranks import ALONE, Ranks, joined
from experiment.errors import UserError
from experiment.files import read_json
from experiment.training.checkpoint import load_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def double():
    with ranked.double():
        yield


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """What two processes made of every model, a part each."""
    out = tmp_path_factory.mktemp("two")
    assert ranked.launch(ranked.train_all, out, ranked.MODELS, 1)[0] == [0, 0]
    return out


@pytest.mark.parametrize("model", ranked.MODELS)
def test_two_processes_of_one_part_are_one_process_of_two(by_two, model):
    one = ranked.trained(model, parts=2)
    for rank in range(2):
        two = torch.load(by_two / f"{model}.{rank}.pt")
        assert difference(one, two) < 1e-12


def test_three_processes_of_two_parts_are_one_process_of_six(tmp_path):
    models = ["actnorm", "denoising"]
    assert ranked.launch(ranked.train_all, tmp_path, models, 6, world=3)[0] == [0, 0, 0]
    for model in models:
        one = ranked.trained(model, parts=6)
        assert difference(one, torch.load(tmp_path / f"{model}.2.pt")) < 1e-12


@pytest.mark.usefixtures("double")
def test_the_gradient_of_parts_is_that_of_their_rows_together():
    """Without noise and without batch statistics k parts of n rows are one of kn."""
    together, apart = (ranked.trainer("spectral norm", parts=parts) for parts in (1, 2))
    rows = [apart._batch(0, part)[0] for part in range(2)]
    assert not torch.equal(*rows)
    apart._gradients()
    together.built.model.load_state_dict(apart.built.model.state_dict())
    together.built.objective(torch.cat(rows), generator=torch.Generator()).backward()
    for a, b in zip(together.parameters, apart.parameters, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_row_is_seen_once_an_epoch_whatever_the_processes(world):
    trainer = ranked.trainer("denoising", parts=6)
    shares = [Parts(6, seed=0, device=CPU, ranks=Ranks(rank=rank, world=world)).mine for rank in range(world)]
    assert sorted(part for share in shares for part in share) == list(range(6))
    seen = []
    for step in range(2):
        seen += [trainer._batch(step, part)[0] for part in range(6)]
    for epoch in range(3):  # of 4 batches
        rows = torch.cat(seen[4 * epoch : 4 * epoch + 4])
        assert len(rows.unique(dim=0)) == 64


def test_one_part_draws_as_before_there_were_parts():
    parts = Parts(1, seed=3, device=CPU, ranks=ALONE)
    torch.manual_seed(8)
    drawn = torch.rand(4, generator=parts.noise(0, step=5))
    assert torch.equal(drawn, torch.rand(4, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(torch.rand(4), torch.rand(4, generator=torch.Generator().manual_seed(8)))  # dropout's


def test_parts_have_noise_of_their_own():
    parts = Parts(3, seed=3, device=CPU, ranks=ALONE)
    draws, dropout = [], []
    for step in range(2):
        for part in range(3):
            draws.append(torch.rand(4, generator=parts.noise(part, step=step)))
            dropout.append(torch.rand(4))
    assert len({tuple(d.tolist()) for d in [*draws, *dropout]}) == 12


def test_parts_that_processes_cannot_share_are_refused():
    with pytest.raises(UserError, match=r"has 3 part\(s\), which 2 processes cannot share evenly"):
        Parts(3, seed=0, device=CPU, ranks=Ranks(rank=0, world=2))


@pytest.mark.parametrize("model", [FLOW, SCORE], ids=["flow", "score"])
def test_a_training_goes_on_with_other_processes_as_long_as_the_parts_are_the_same(tmp_path, model):
    """Two processes until step 5, then one, are two all the time, and one in two parts."""
    config = ranked.toy(model)
    assert ranked.launch(ranked.stop_at_five, config, tmp_path / "run")[0] == [0, 0]
    assert load_checkpoint(tmp_path / "run/last.ckpt")["progress"]["step"] == 5
    train(config, tmp_path / "run", threads=1, resume=True)
    assert ranked.launch(ranked.train_run, config, tmp_path / "two")[0] == [0, 0]
    train(ranked.toy(model, parts=2), tmp_path / "one", threads=1)
    assert difference(weights(tmp_path / "run"), weights(tmp_path / "two")) == 0
    assert difference(weights(tmp_path / "run"), weights(tmp_path / "one")) < 1e-6
    assert not list(tmp_path.rglob("*.tmp"))
    assert len((tmp_path / "two/metrics.jsonl").read_text().splitlines()) == 4  # of the first process alone


def test_processes_do_not_share_the_parts_of_a_checkpoint_that_has_one(tmp_path):
    train(ranked.toy(FLOW), tmp_path / "run", threads=1)
    statuses, said = ranked.launch(ranked.train_run, ranked.toy(FLOW), tmp_path / "run")
    assert statuses == [1, 1]
    assert "has 1 part(s), which 2 processes cannot share" in said


@pytest.mark.usefixtures("double")
def test_a_checkpoint_of_before_there_were_parts_opens(tmp_path):
    trainer, fresh = (ranked.trainer("denoising", parts=1) for _ in range(2))
    trainer.step()
    state = trainer.state()
    fresh.load_state({**state, "generator": state["generator"][0]})
    assert difference(fresh.state(), trainer.state()) == 0


@pytest.mark.parametrize("model", [FLOW, {**SCORE, **PROBED}], ids=["flow", "score"])
def test_two_processes_evaluate_and_draw_as_one(tmp_path, model):
    run = train(ranked.toy({k: v for k, v in model.items() if k != "dropout"}), tmp_path / "run", threads=1).path
    found = []
    for launch in (lambda *job: job[0](ALONE, *job[1:]), ranked.launch):
        options = {"count": 50, "seeds": range(50), "chunk": 12}
        launch(ranked.measure_run, run)
        launch(ranked.sample_run, run, run / "s.npy", options)
        with np.load(run / "evaluation.npz") as arrays:
            fields = dict(arrays)
        summary = {k: v for k, v in read_json(run / "evaluation.json").items() if k != "seconds"}
        found.append((fields, summary, np.load(run / "s.npy")))
        for name in ("evaluation.npz", "evaluation.json", "s.npy"):
            (run / name).unlink()
    (one, summary, samples), (two, other_summary, other_samples) = found
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert one["log_prob"].std() > 0
    assert summary == other_summary
    assert np.array_equal(samples, other_samples)
    assert samples.shape == (50, 2)


def test_processes_share_draws_by_a_seed_a_sample(tmp_path):
    statuses, said = ranked.launch(ranked.sample_run, tmp_path, tmp_path / "s.npy", {"count": 4, "chunk": 2})
    assert statuses == [1, 1]
    assert "2 processes share draws by --seeds, one a sample, and --chunk" in said


def test_processes_that_are_started_again_do_not_look_for_those_before(tmp_path):
    """torchrun keeps its store, and in it where the dead were to be found."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for _ in range(4):
        assert ranked.launch(ranked.decide, tmp_path, store=store, seconds=30)[0] == [0, 0]


@pytest.mark.parametrize("who", [0, 1])
def test_an_error_of_one_process_ends_all_with_its_message(who):
    statuses, said = ranked.launch(ranked.fail, who)
    assert statuses == [1, 1]
    assert f"error: process {who} has found NaN." in said
    assert f"error: process {1 - who} of 2 cannot go on: another one ended, whose message says why." in said
    assert "Traceback" not in said


def test_what_the_first_process_cannot_do_is_said_once():
    statuses, said = ranked.launch(ranked.fail_first)
    assert statuses == [1, 1]
    assert said.splitlines() == ["error: the first has found NaN."]


def test_the_first_process_of_a_machine_reads_the_data_before_its_others(tmp_path):
    assert ranked.launch(ranked.first_alone, tmp_path)[0] == [0, 0]
    assert {path.name for path in tmp_path.iterdir()} == {"data", "0 True", "1 True"}


def test_the_clock_of_the_first_process_counts(tmp_path):
    assert ranked.launch(ranked.decide, tmp_path)[0] == [0, 0]
    assert {path.name for path in tmp_path.iterdir()} == {"0 [True, False]", "1 [True, False]"}


def test_without_torchrun_there_is_no_process_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined(device="cpu") as ranks:
        assert ranks == ALONE
        assert not torch.distributed.is_initialized()


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cuda = torch.device("cuda")
    assert Ranks(rank=5, world=8, local=1).place(cuda) == torch.device("cuda:1")
    assert Ranks(rank=5, world=8, local=1).place(CPU) == CPU
    assert ALONE.place(cuda) == cuda
    with pytest.raises(UserError, match="process 2 of this machine needs a GPU of its own, but torch sees 2"):
        Ranks(rank=2, world=3, local=2).place(cuda)
    with pytest.raises(UserError, match="device cuda:0 is one GPU, but each of 3 processes needs its own"):
        Ranks(rank=2, world=3, local=2).place(torch.device("cuda:0"))


def test_jobs_are_dealt_in_turn_and_come_back_in_order():
    shares = [Ranks(rank=rank, world=3).share(list("abcdefgh")) for rank in range(3)]
    assert shares == [list("adg"), list("beh"), list("cf")]


def test_processes_that_do_not_come_are_not_waited_for_for_ever(monkeypatch):
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(UserError, match=r"of 3 processes 2 did not come within 0:00:00.1"):
        fresh_store(0, 3, patience=timedelta(seconds=0.1))
