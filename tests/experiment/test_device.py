"""Which device is taken, and in which arithmetic a GPU multiplies float32."""

from contextlib import suppress

import pytest
import torch

from discrete import AffineCoupling
from experiment.building.builder import load_data
from experiment.config import parse_config
from experiment.device import products_in_tf32, resolve_device
from experiment.training.trainer import Trainer


def allowed() -> tuple[bool, str]:
    return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()


@pytest.fixture(autouse=True)
def as_before():
    before = allowed()
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


def test_scripts_multiply_float32_as_float32():
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    resolve_device("cpu")
    assert allowed() == (False, "highest")


@pytest.mark.parametrize("before", [(False, "highest"), (True, "high")])
def test_tf32_ends_with_its_block(before):
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])
    with suppress(ZeroDivisionError), products_in_tf32(allowed=True):
        assert allowed() == (True, "high")
        _ = 1 / 0
    assert allowed() == before
    with products_in_tf32(allowed=False):
        assert allowed() == before


@pytest.mark.parametrize("tf32", [True, False])
def test_training_steps_take_tf32_where_asked_and_validation_never(tf32, tmp_path):
    data = {"kind": "toy", "name": "moons", "train_rows": 64, "validation_rows": 16, "test_rows": 16}
    table = {
        "data": data,
        "preprocessing": {"kind": "none", "standardize": True},
        "model": {"kind": "real_nvp", "layers": 2, "hidden": [8]},
        "train": {"steps": 2, "batch_size": 16, "tf32": tf32},
    }
    config = parse_config(table, source="test")
    trainer = Trainer(config, load_data(config.data, tmp_path), device=resolve_device("cpu"))
    seen, validated = [], []
    for built, notes in ((trainer.built, seen), (trainer.ema.built, validated)):
        coupling = next(module for module in built.model.modules() if isinstance(module, AffineCoupling))
        coupling.conditioner.register_forward_hook(lambda *_, notes=notes: notes.append(allowed()))
        coupling.conditioner.register_full_backward_hook(lambda *_, notes=notes: notes.append(allowed()))
    trainer.step()
    assert seen == 2 * [(tf32, "high" if tf32 else "highest")]
    trainer.validate()
    assert validated == [(False, "highest")]
    assert allowed() == (False, "highest")
