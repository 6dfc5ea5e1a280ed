"""Both sides learn a toy whose entropy is known, and neither goes below it by more than the noise."""

from pathlib import Path

import pytest

from experiment import evaluate, load_config, train
from experiment.likelihood import normalization_check

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "gap", "settings"),
    [
        ("real_nvp", 0.06, ["train.steps=1500", "model.layers=6", "model.hidden=[64, 64]"]),
        ("vp_sde", 0.15, ["train.steps=1200", "data.test_rows=1000", "model.hidden=[64, 64, 64]"]),
    ],
)
def test_moons_within_a_gap_of_the_entropy(tmp_path, monkeypatch, model, gap, settings):
    monkeypatch.setitem(normalization_check.POINTS, 2, 49)  # an ODE a point
    config = load_config(ROOT / f"configs/moons/{model}.toml", ["train.ema_decay=0.99", *settings])
    summary = evaluate(train(config, tmp_path / model).path)
    excess = -summary.log_prob_nats - summary.entropy_nats
    assert -4 * summary.error_nats < excess < gap + 2 * summary.error_nats
    assert summary.kind == "exact"
