"""What starting from the prior costs: KL(p_1 ‖ prior) of each noising process, in closed form."""

from typing import Any

from cflows import SDE, VESDE, VPSDE, CosineVPSDE, SubVPSDE, prior_kl

PROCESSES: dict[str, SDE] = {"VP": VPSDE(), "cosine VP": CosineVPSDE(), "sub-VP": SubVPSDE(), "VE": VESDE()}
VARIANCES = (0.01, 0.25, 1.0, 4.0)


def measure() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One row a process, nats per dimension for each variance of Gaussian data of mean 0."""
    rows = [
        {"process": name, "sde": repr(sde), "kl_nats": [prior_kl(sde, variance=v) for v in VARIANCES]}
        for name, sde in PROCESSES.items()
    ]
    return {"variances": VARIANCES}, rows
