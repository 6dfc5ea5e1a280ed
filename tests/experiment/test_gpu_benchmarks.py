"""Times on a GPU: what can be seen of them without one."""

import json

import pytest
import torch

from benchmarks import device_modes, flow_peers, run, tables
from benchmarks.record import record
from discrete import RealNVP


def test_without_a_gpu_or_a_known_name_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--gpu needs a GPU, but torch sees none"):
        run.main(["--gpu"])
    with pytest.raises(SystemExit, match="'digits' is not measured on a GPU"):
        run.main(["--gpu", "digits"])


def test_a_clock_waits_for_the_gpu_before_it_starts_and_before_it_stops(monkeypatch):
    order = []
    monkeypatch.setattr(torch, "get_default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("wait"))
    monkeypatch.setattr(flow_peers.time, "perf_counter", lambda: order.append("clock") or 0.0)
    flow_peers._timed(lambda: order.append("run") or torch.ones(1), "ours")
    assert order == ["wait", "clock", "run", "wait", "clock"]


def test_modes_are_timed_and_their_loss_is_that_of_the_log_likelihood(tmp_path, monkeypatch):
    monkeypatch.setattr(device_modes, "KINDS", {"RealNVP": lambda: RealNVP(4, layers=2, hidden=(8,))})
    monkeypatch.setattr(device_modes, "ROWS", 16)
    monkeypatch.setattr(device_modes, "BUDGET", 0.05)
    monkeypatch.setattr(flow_peers, "WARM", 0.0)
    asked = []

    def compiled(call, **options):
        asked.append(options)
        return lambda x: call(x) + 0.5

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    record("device_modes", device_modes.measure, folder=tmp_path / "gpu")
    rows = json.loads((tmp_path / "gpu" / "device_modes.json").read_text())["rows"]
    assert [row["task"] for row in rows] == ["log_prob", "training step"]
    assert asked == 2 * [{}, {"mode": "reduce-overhead"}]
    for row in rows:
        assert row["faster"]["as it comes"] == 1
        assert row["lost_nats"]["compiled"] == pytest.approx(0.5, abs=1e-4)
    text = tables.table("device_modes", folder=tmp_path / "gpu")
    assert "| RealNVP | log_prob |" in text
    assert "/docs/results/gpu/device_modes.json" in text


def test_a_whole_step_is_in_tf32():
    seen = []
    device_modes._in_tf32(lambda: seen.append(torch.get_float32_matmul_precision()))()
    assert seen == ["high"]
    assert torch.get_float32_matmul_precision() == "highest"
