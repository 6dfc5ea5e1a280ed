"""What benchmarks keep of a suite, and how its table shows it."""

from benchmarks.columns import suites as tables
from benchmarks.suites import row


def summary(**changed):
    base = {
        "data": "moons",
        "kind": "exact",
        "parameters": 1234,
        "log_prob_nats": -2.5,
        "sampling_error_nats": 0.03,
        "solver_error_nats": 0.04,
        "bits_per_dim": None,
        "bits_per_dim_error": None,
        "entropy_nats": 2.4,
        "train_seconds": 50.0,
        "seconds": 1.0,
        "rank": 1,
        "tied": "a",
    }
    return base | changed


def test_a_row_is_a_model_on_every_data_set_with_its_medians():
    found = {"moons": [summary()], "rings": [summary(rank=4, train_seconds=70.0, entropy_nats=2.45)]}
    r = row("flow", found, {})
    assert (r["train_seconds"], r["mean_rank"], r["published"]) == (60.0, 2.5, None)
    assert r["found"]["moons"]["error_nats"] == 0.05
    cells = dict(tables.columns(("moons", "rings"), tables.gap))
    shown = {title: cell(r) for title, cell in cells.items()}
    assert shown == {
        "model": "flow",
        "kind": "exact",
        "parameters": "1,234",
        "training (s)": "60",
        "moons": "**0.100 ± 0.050**",
        "rings": "0.050 ± 0.050",
        "mean rank": "2.5",
    }


def test_a_number_in_print_stands_beside_the_model_that_it_is_of():
    counterparts = {"maf": "MAF(5)"}
    found = {"bsds300_patches": [summary(data="bsds300_patches")]}
    assert row("maf", found, counterparts)["published"] == {"model": "MAF(5)", "value": 155.69}
    assert tables.in_print(row("maf", found, counterparts)) == "155.69 (MAF(5))"
    assert tables.in_print(row("other", found, counterparts)) == ""
