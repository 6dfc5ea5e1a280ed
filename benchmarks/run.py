"""`python -m benchmarks.run [--bench | name ...]` measures all results, all times or the named, and writes tables.

With `--gpu` each of the named or of `GPU` is measured on a GPU, into `docs/results/gpu/<name>.json` and `<name>.md`.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

import torch

from benchmarks import tables
from benchmarks.record import record
from experiment.errors import UserError

# Each is a module of this package, imported when its turn comes: what others import has no share in its times.
RESULTS = (
    "closed_form",
    "toys",
    "continuous_toys",
    "digits",
    "distillation",
    "mnist_glow",
    "mnist_autoregressive",
    "bsds300",
    "inverse_modes",
    "boltzmann",
    "score_field",
    "annealing",
    "langevin_bias",
    "ncsn_toys",
    "energy_model",
    "ncsn_images",
    "sde_priors",
    "sampler_quality",
    "sampler_images",
    "guided_images",
    "trace_calibration",
    "planar_energies",
    "vae_posteriors",
    "discrete_toys",
    "gaussianization_tails",
    "rbig",
    "mintnet_inverse",
    "toys_suite",
    "digits_suite",
    "uci_small_suite",
    "bsds300_suite",
    "faults",
)
# Those that are about time: `make bench`, on an idle machine, and at last what all of them say.
BENCH = (
    "start_time",
    "data_loading",
    "coupling_speed",
    "planar_speed",
    "autoregressive_speed",
    "autoregressive_growth",
    "gaussianization_speed",
    "linear_speed",
    "glow_speed",
    "glow_memory",
    "continuous_speed",
    "score_matching_speed",
    "sampler_speed",
    "ode_likelihood",
    "ode_growth",
    "ode_overhead",
    "compile_speed",
    "arithmetic",
    "scaling",
    "reduction",
    "speed",
)
# Those that a GPU can be asked for too.
GPU = (
    "device_modes",
    "coupling_speed",
    "planar_speed",
    "autoregressive_speed",
    "gaussianization_speed",
    "linear_speed",
    "continuous_speed",
)
TESTS = ("mutants",)  # what the tests notice: `make mutants`
PEERS = {  # what a result is measured beside, from the extra `bench`
    "coupling_speed": ("nflows", "normflows", "FrEIA", "zuko"),
    "planar_speed": ("normflows", "pyro"),
    "linear_speed": ("nflows", "normflows"),
    "continuous_speed": ("flow_matching", "torchcfm", "torchsde"),
    "glow_speed": ("normflows",),
    "autoregressive_speed": ("zuko", "nflows", "pyro"),
    "autoregressive_growth": ("zuko", "nflows"),
    "gaussianization_speed": ("zuko",),
    "gaussianization_tails": ("zuko",),
}


def main(names: list[str]) -> None:
    """Measures the named results in order."""
    if "--gpu" in names:
        measure_on_gpu([name for name in names if name not in ("--gpu", "--bench")] or [*GPU])
        return
    names = [*BENCH] if names == ["--bench"] else names or [*RESULTS]
    unknown = [name for name in names if name not in (*RESULTS, *BENCH, *TESTS)]
    if unknown:
        sys.exit(f"unknown result {unknown[0]!r}; known: {', '.join(dict.fromkeys((*RESULTS, *BENCH, *TESTS)))}")
    failed = measured(names, folder=tables.RESULTS)
    tables.main(["--write"])
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def measured(names: list[str], *, folder: Path) -> list[str]:
    """Records each in the folder but those whose peers are missing; the names of those that failed."""
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        missing = [peer for peer in PEERS.get(name, ()) if importlib.util.find_spec(peer) is None]
        if missing:
            print(f"left out: it needs {', '.join(missing)}, pip install -c constraints.txt -e '.[bench]'")
            continue
        try:
            record(name, importlib.import_module(f"benchmarks.{name}").measure, folder=folder)
        except (UserError, torch.OutOfMemoryError) as error:  # such as data that are not there: the others go on
            print(f"failed: {error}", flush=True)
            failed.append(name)
    return failed


def measure_on_gpu(names: list[str], *, folder: Path = tables.RESULTS / "gpu") -> None:
    """Measures the named on a GPU, on which everything is made that names no device of its own."""
    unknown = [name for name in names if name not in GPU]
    if unknown:
        sys.exit(f"{unknown[0]!r} is not measured on a GPU; what is: {', '.join(GPU)}")
    if not torch.cuda.is_available():
        sys.exit("--gpu needs a GPU, but torch sees none")
    with torch.device("cuda"):
        failed = measured(names, folder=folder)
    for name in names:
        if (folder / f"{name}.json").exists():
            (folder / f"{name}.md").write_text(tables.table(name, folder=folder))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main(sys.argv[1:])
