"""The suites in configs/suites: every model builds on every data set and takes a step, those of MNIST elsewhere."""

import os
from pathlib import Path

import pytest
import torch
from helpers import first_rows

from experiment.building.builder import load_data
from experiment.comparison.suite import Task, is_suite, read_suite
from experiment.config import Config, load_config, parse_config
from experiment.data import Dataset
from experiment.sections.base import Section
from experiment.training.trainer import Trainer

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("CFLOWS_DATA_ROOT", ROOT.parent / "shared" / "data"))
SUITES = {path.stem: path for path in sorted((ROOT / "configs/suites").glob("*.toml"))}
ROWS = {"train_rows": 64, "validation_rows": 10, "test_rows": 10}


def tasks_of(name: str, monkeypatch: pytest.MonkeyPatch, out: Path) -> list[Task]:
    monkeypatch.chdir(ROOT)
    return read_suite(SUITES[name], out)


def tiny(config: Config) -> Config:
    table = config.model_dump(mode="json")
    table["train"]["batch_size"] = 4
    if table["data"]["kind"] in ("toy", "bsds300_patches"):
        table["data"] |= ROWS
    return parse_config(table, source="test")


def few(data: Section) -> Dataset:
    folder = {"bsds300_patches": "bsds300_images", "toy": ".", "digits": "."}.get(data.kind, data.kind)
    if not (DATA / folder).is_dir():
        pytest.skip(f"{data.kind} is not on this machine; set CFLOWS_DATA_ROOT")
    return first_rows(load_data(data, DATA), train=64, others=10)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SUITES if name != "mnist"])
def test_every_model_of_a_suite_steps_on_every_data_set(name, monkeypatch, tmp_path):
    datasets: dict[Section, Dataset] = {}
    for task in tasks_of(name, monkeypatch, tmp_path):
        config = tiny(task.config)
        if config.data not in datasets:
            datasets[config.data] = few(config.data)
        trainer = Trainer(config, datasets[config.data], device=torch.device("cpu"))
        loss, norm = trainer.step()
        assert loss.isfinite(), task
        assert norm.isfinite(), task


def test_models_on_mnist_are_ready_made_configs(monkeypatch, tmp_path):
    """Of which tests/experiment/building/test_image_configs.py takes a step."""
    ready = [load_config(path) for path in (ROOT / "configs/mnist").glob("*.toml")]
    sections = [(config.data, config.preprocessing, config.model) for config in ready]
    for task in tasks_of("mnist", monkeypatch, tmp_path):
        assert (task.config.data, task.config.preprocessing, task.config.model) in sections, task


@pytest.mark.parametrize("name", SUITES)
def test_all_models_of_a_suite_are_measured_alike(name, monkeypatch, tmp_path):
    """With other draws of the noise they would be refused only once all are trained."""
    assert is_suite(SUITES[name])
    tasks = tasks_of(name, monkeypatch, tmp_path)
    assert len(tasks) > 1
    for data in {task.data for task in tasks}:
        found = [task.config for task in tasks if task.data == data]
        assert len({config.evaluate.draws for config in found}) == 1
        assert len({config.data.model_copy(update={"layout": ""}) for config in found}) == 1
