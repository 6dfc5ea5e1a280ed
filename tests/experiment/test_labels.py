"""Labels: from the files to the models that are told them, their likelihood and their draws."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from core import GenerativeModel
from discrete import BatchNorm
from experiment import compare, evaluate, load_run, train
from experiment.building.builder import build
from experiment.building.objective import Preprocessed
from experiment.config import parse_config
from experiment.data import Dataset, Labels, digits
from experiment.draws.sampling import draw_samples
from experiment.errors import UserError
from experiment.likelihood.evaluation import NOISE_SEED, saved_log_prob
from experiment.run import Run
from experiment.training.checkpoint import load_checkpoint, save_checkpoint
from experiment.training.trainer import VALIDATION_SEED, Trainer

SOLVER = {"method": "rk4", "steps": 2}
SCORE = {"kind": "score_sde", "hidden": [8], "solver": SOLVER, "sampler": {"steps": 3}}
MODELS: dict[str, dict[str, Any]] = {
    "nice": {"kind": "nice", "hidden": [8]},
    "real_nvp": {"kind": "real_nvp", "layers": 2, "hidden": [8], "normalization": "batch"},
    "nsf": {"kind": "nsf", "layers": 2, "hidden": [8]},
    "made": {"kind": "made", "hidden": [64]},
    "maf": {"kind": "maf", "layers": 1, "hidden": [64], "base": {"components": 2, "hidden": [64]}},
    "iaf": {"kind": "iaf", "layers": 1, "hidden": [64]},
    "transformer_flow": {"kind": "transformer_flow", "layers": 1, "depth": 1, "hidden": 8, "heads": 1, "patch": 16},
    "autoregressive_mlp": {"kind": "autoregressive_mlp", "hidden": [64]},
    "autoregressive_transformer": {"kind": "autoregressive_transformer", "layers": 1, "hidden": 8, "heads": 1},
    "score_sde": SCORE,
    "ncsn": {"kind": "ncsn", "hidden": [8], "ladder": {"levels": 3}, "sampler": {"steps": 2}},
    "energy": {"kind": "energy", "hidden": [8], "steps": 3},
    "glow": {"kind": "glow", "levels": 1, "depth": 1, "hidden": [8]},
    "pixel_cnn": {"kind": "pixel_cnn", "layers": 1, "hidden": [8, 8]},
    "wave_net": {"kind": "wave_net", "layers": 1, "hidden": [8, 8, 8]},
}
IMAGES = ("glow", "pixel_cnn")
MASSES = ("autoregressive_mlp", "autoregressive_transformer", "pixel_cnn", "wave_net")


def config(name: str, *, labels: bool = True, model: dict[str, Any] | None = None, **settings: Any) -> Any:
    table = {
        "data": {"kind": "digits", "layout": "image" if name in IMAGES else "flat", "labels": labels},
        "preprocessing": {"kind": "none" if name in MASSES else "logit"},
        "model": {**MODELS[name], **(model or {})},
        "train": {"steps": 2, "batch_size": 64, "validate_every": 2, **settings},
        "evaluate": {"draws": 2},
    }
    return parse_config(table, source="test")


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A flow that has learned to tell the digits apart a little."""
    settings = {"steps": 40, "learning_rate": 1e-2, "schedule": "constant"}
    return train(config("real_nvp", **settings), tmp_path_factory.mktemp("labels") / "flow", threads=1)


def test_labels_leave_rows_and_unlabelled_digests_as_they_were() -> None:
    plain, labelled = digits(), digits(labels=True)
    assert torch.equal(plain.train, labelled.train)
    assert (plain.fingerprint, plain.classes, plain.context("test")) == ("3c37a4bfca2a7290", 0, None)
    assert labelled.digest != plain.digest
    other = Labels(labelled.labels.train.flip(0), labelled.labels.validation, labelled.labels.test, classes=10)
    changed = Dataset("digits", labelled.train, labelled.validation, labelled.test, bins=17, labels=other)
    assert changed.digest != labelled.digest
    assert changed.fingerprint == labelled.fingerprint


def test_the_context_is_one_hot() -> None:
    data = digits(labels=True)
    context = data.context("validation")
    assert context.shape == (180, 10)
    assert context.dtype == torch.float32
    assert torch.equal(context.argmax(1), data.labels.validation)
    assert torch.equal(context.sum(1), torch.ones(180))


def test_labels_that_do_not_fit_the_rows_are_refused() -> None:
    one, two = torch.zeros(1, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    with pytest.raises(UserError, match=r"^labels: row 1 has class 3; classes go from 0 to 2\.$"):
        Labels(torch.tensor([0, 3]), one, one, classes=3)
    with pytest.raises(
        UserError, match=r"^d: the splits hold \[2, 1, 1\] rows, but \[2, 2, 1\] labels; each row needs"
    ):
        Dataset("d", torch.zeros(2, 1), torch.zeros(1, 1), torch.zeros(1, 1), labels=Labels(two, two, one, classes=3))


@pytest.mark.parametrize("name", MODELS)
def test_every_model_that_takes_a_context_is_told(name: str) -> None:
    """One step, one validation; with other weights, what it says depends on the label; a draw needs one."""
    data = digits(layout="image" if name in IMAGES else "flat", labels=True)
    trainer = Trainer(config(name), data, device=torch.device("cpu"))
    trainer.step()
    assert np.isfinite(trainer.validate())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.built.model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    objective = trainer.built.objective.eval()
    rows = data.test[:8]
    losses = [
        objective(rows, nn.functional.one_hot(labels, 10).float(), generator=torch.Generator().manual_seed(2)).item()
        for labels in (data.labels.test[:8], (data.labels.test[:8] + 1) % 10)
    ]
    assert losses[0] != losses[1]
    model: GenerativeModel = trainer.built.model.eval()
    assert model.sample((2,), context=data.context("test")[:2], generator=generator).shape == (2, *data.event_shape)
    with pytest.raises(ValueError, match="context"):
        model.sample((2,), generator=generator)


@pytest.mark.parametrize(
    ("model", "labels", "sentence"),
    [
        ({"kind": "linear"}, True, r"^model\.kind=linear: it takes no labels; set data\.labels=false"),
        (
            {**MODELS["ncsn"], "conditioning": "scaling"},
            True,
            r"^model\.kind=ncsn: only conditioning='embedding' takes",
        ),
        (
            {**SCORE, "label_dropout": 0.1},
            False,
            r"^model\.kind=score_sde: label_dropout=0\.1 leaves out labels, but the data have none",
        ),
    ],
)
def test_what_knows_no_labels_says_so(model: Any, labels: bool, sentence: str) -> None:
    table = {"data": {"kind": "digits", "labels": labels}, "model": model}
    with pytest.raises(UserError, match=sentence):
        build(parse_config(table, source="test"), (64,), bins=17, classes=10 if labels else 0)


class Heard(nn.Module):
    """Remembers the context it was called with."""

    def forward(self, batch: torch.Tensor, context: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
        self.context = context
        return batch.sum()


def test_labels_are_left_out_in_training_alone() -> None:
    """A share of the rows, whole and at random, 4 standard errors around the probability; never in evaluation."""
    objective = Preprocessed(None, Heard(), context_dropout=0.3)
    context = nn.functional.one_hot(torch.arange(20_000) % 10, 10).float()

    def told(seed: int) -> torch.Tensor:
        objective(torch.zeros(20_000, 1), context, generator=torch.Generator().manual_seed(seed))
        return objective.objective.context

    left_out = told(0).sum(1) == 0
    assert left_out.float().mean().item() == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 20_000) ** 0.5)
    assert torch.equal(told(0)[~left_out], context[~left_out])
    assert torch.equal(told(0), told(0))
    assert not torch.equal(told(0), told(1))
    objective.eval()
    assert torch.equal(told(0), context)


def test_a_generator_is_left_alone_where_nothing_is_left_out() -> None:
    """So that trainings of before go on bit for bit."""
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    Preprocessed(None, Heard())(torch.zeros(3, 1), torch.ones(3, 2), generator=generator)
    Preprocessed(None, Heard(), context_dropout=0.5)(torch.zeros(3, 1), None, generator=generator)
    assert torch.equal(generator.get_state(), before)


def test_the_likelihood_is_that_of_rows_given_their_own_labels(flow: Run) -> None:
    summary = evaluate(flow.path, threads=1)
    assert summary.conditional
    assert summary.round_trip_max < 1e-4, "and back, told the same"
    assert "log p(x | y) = " in summary.text()
    data, model = flow.load_data(), load_run(flow.path)
    for draw, found in enumerate(saved_log_prob(flow)):
        generator = torch.Generator().manual_seed(NOISE_SEED + draw)
        with torch.no_grad():
            expected = model.log_prob(data.test, data.context("test"), generator=generator)
        np.testing.assert_array_equal(found, expected.double().numpy())
    with torch.no_grad():
        wrong = model.log_prob(data.test, data.context("test").roll(1, 1), generator=generator)
    assert found.mean() > wrong.mean().item() + 1, "labels tell it something"


def test_validation_tells_each_row_its_own_label_in_every_draw(flow: Run) -> None:
    data = flow.load_data()
    trainer = Trainer(config("real_nvp", validation_draws=2), data, device=torch.device("cpu"))
    trainer.ema.built.model.load_state_dict(load_run(flow.path).state_dict())
    found = trainer.validate()  # with exact statistics of the training rows, as the expected one below
    rows, context = torch.cat([data.validation] * 2), torch.cat([data.context("validation")] * 2)
    generator = torch.Generator().manual_seed(VALIDATION_SEED)
    with torch.no_grad():
        expected = -trainer.ema.built.model.log_prob(rows, context, generator=generator).mean()
    assert found == pytest.approx(expected.item(), rel=1e-6)


def test_batch_normalization_sees_the_labels(flow: Run) -> None:
    """Its statistics in the checkpoint are those of the training rows with theirs."""
    model = load_run(flow.path)
    assert any(isinstance(module, BatchNorm) for module in model.modules())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer = Trainer(flow.config, flow.load_data(), device=torch.device("cpu"))
    trainer.ema.built.model.load_state_dict(before)
    trainer.validate()
    for key, value in trainer.ema.built.model.state_dict().items():
        torch.testing.assert_close(value, before[key], msg=key)


def test_told_and_untold_are_not_compared(flow: Run, tmp_path: Path) -> None:
    untold = train(config("real_nvp", labels=False), tmp_path / "untold", threads=1)
    sentence = r"^flow was told the labels and untold was not: log p\(x \| y\) and log p\(x\) cannot be compared\.$"
    for runs in ([flow.path, untold.path], [untold.path, flow.path]):
        with pytest.raises(UserError, match=sentence):
            compare(runs, tmp_path / "out", threads=1)
    comparison = compare([flow.path], tmp_path / "out", threads=1)
    assert "log p(x | y) (nats)" in comparison.text()
    assert (tmp_path / "out" / "samples.png").is_file()


def test_runs_from_before_there_were_labels_are_read(tmp_path: Path) -> None:
    """No `classes` in the environment, no `kind` of the sampler, no `labels` of the data."""
    run = train(config("score_sde", labels=False), tmp_path / "run", threads=1)
    environment, asked = (json.loads((run.path / f"{name}.json").read_text()) for name in ("environment", "config"))
    del environment["classes"], asked["data"]["labels"], asked["model"]["label_dropout"]
    asked["model"]["sampler"] = {"steps": 3, "t_min": 0.001, "denoise": True}
    environment["config_sha256_16"] = "of another version"
    for name, content in {"environment": environment, "config": asked}.items():
        (run.path / f"{name}.json").write_text(json.dumps(content))
    for path in (run.best, run.last):
        save_checkpoint(path, {**load_checkpoint(path), "config_sha256_16": "of another version"})
    path, _ = draw_samples(run.path, count=2, threads=1)
    assert np.load(path).shape == (2, 64)
    for _ in range(2):  # and what a resumed training writes can be read and resumed
        state = load_checkpoint(run.last)
        save_checkpoint(run.last, {**state, "progress": {**state["progress"], "finished": False, "step": 1}})
        train(run.config, run.path, resume=True, threads=1)
    assert load_checkpoint(run.best)["step"] == 2
    assert isinstance(load_run(run.path), GenerativeModel)
