"""`python -m benchmarks.run [name ...]` measures all results or the named ones and writes the tables anew."""

import importlib
import importlib.util
import sys

from benchmarks import tables
from benchmarks.record import record

# Each is a module of this package, imported when its turn comes: what others import has no share in its times.
RESULTS = (
    "closed_form",
    "toys",
    "continuous_toys",
    "digits",
    "distillation",
    "glow_memory",
    "glow_speed",
    "mnist_glow",
    "mnist_autoregressive",
    "bsds300",
    "autoregressive_speed",
    "autoregressive_growth",
    "inverse_modes",
    "boltzmann",
    "score_field",
    "annealing",
    "langevin_bias",
    "ncsn_toys",
    "energy_model",
    "ncsn_images",
    "score_matching_speed",
    "sde_priors",
    "sampler_quality",
    "sampler_images",
    "guided_images",
    "sampler_speed",
    "ode_likelihood",
    "ode_growth",
    "ode_overhead",
    "trace_calibration",
    "planar_energies",
    "vae_posteriors",
    "discrete_toys",
    "gaussianization_speed",
    "gaussianization_tails",
    "rbig",
    "mintnet_inverse",
    "toys_suite",
    "digits_suite",
    "uci_small_suite",
    "bsds300_suite",
)
PEERS = {  # what a result is measured beside, from the extra `bench`
    "glow_speed": ("normflows",),
    "autoregressive_speed": ("zuko", "nflows", "pyro"),
    "autoregressive_growth": ("zuko", "nflows"),
    "gaussianization_speed": ("zuko",),
    "gaussianization_tails": ("zuko",),
}


def main(names: list[str]) -> None:
    """Measures the named results in order."""
    unknown = [name for name in names if name not in RESULTS]
    if unknown:
        sys.exit(f"unknown result {unknown[0]!r}; known: {', '.join(RESULTS)}")
    for name in names or RESULTS:
        print(f"== {name}", flush=True)
        missing = [peer for peer in PEERS.get(name, ()) if importlib.util.find_spec(peer) is None]
        if missing:
            print(f"left out: it needs {', '.join(missing)}, pip install -c constraints.txt -e '.[bench]'")
            continue
        record(name, importlib.import_module(f"benchmarks.{name}").measure)
    tables.main(["--write"])


if __name__ == "__main__":
    main(sys.argv[1:])
