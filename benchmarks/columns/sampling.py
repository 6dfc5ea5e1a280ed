"""Tables of score matching, energy models and samplers."""

from benchmarks.columns.cells import Columns, Row, met, ratio

TABLES: dict[str, Columns] = {
    "boltzmann": [
        ("std of couplings", lambda r: f"{r['coupling_std']:g}"),
        ("method", lambda r: r["method"]),
        ("RMS error of a coupling", lambda r: f"{r['rms_error']:.3f}"),
        ("KL(truth ‖ found) (nats)", lambda r: f"{r['kl_nats']:.4f} ± {r['kl_error_nats']:.4f}"),
        ("time (s)", lambda r: f"{r['seconds']:.1f}"),
    ],
    "score_field": [
        ("objective", lambda r: r["objective"]),
        ("E ‖learned − exact‖² under the data", lambda r: f"{r['fisher_divergence']:.4f}"),
        ("relative error where log p > −5", lambda r: f"{100 * r['above -5']:.1f} %"),
        ("−10 to −5", lambda r: f"{100 * r['-10 to -5']:.1f} %"),
        ("below −10", lambda r: f"{100 * r['below -10']:.1f} %"),
        ("training (s)", lambda r: f"{r['seconds']:.0f}"),
    ],
    "annealing": [
        ("chain", lambda r: r["chain"]),
        ("ε", lambda r: f"{r['step_size']:g}" if "step_size" in r else ""),
        ("steps", lambda r: _steps(r)),
        ("weight of the small mode", lambda r: f"{r['weight']:.3f} ± {r['weight_error']:.3f}"),
        ("energy distance", lambda r: f"{r['energy_distance']:.3f} ± {r['energy_distance_error']:.3f}"),
        ("acceptance", lambda r: f"{r['acceptance']:.2f}" if "acceptance" in r else ""),
        ("time (s)", lambda r: f"{r['seconds']:.1f}" if "seconds" in r else ""),
    ],
    "langevin_bias": [
        ("ε", lambda r: f"{r['step_size']:g}"),
        ("stationary variance, closed form", lambda r: f"{r['closed_form']:.4f}"),
        ("Langevin", lambda r: f"{r['langevin_variance']:.4f} ± {r['langevin_error']:.4f}"),
        ("MALA", lambda r: f"{r['mala_variance']:.4f} ± {r['mala_error']:.4f}"),
        ("acceptance of MALA", lambda r: f"{r['acceptance']:.3f}"),
    ],
    "ncsn_toys": [
        ("toy", lambda r: r["toy"]),
        ("draws of", lambda r: r["draws"]),
        ("energy distance", lambda r: f"{r['energy_distance']['statistic']:.4f}"),
        ("under permutation", lambda r: f"{r['energy_distance']['null_mean']:.4f}"),
        ("p", lambda r: f"{r['energy_distance']['p_value']:.3f}"),
        ("MMD²", lambda r: f"{r['mmd']['statistic']:.5f}"),
        ("under permutation ", lambda r: f"{r['mmd']['null_mean']:.5f}"),
        ("p ", lambda r: f"{r['mmd']['p_value']:.3f}"),
    ],
    "energy_model": [
        ("temperatures", lambda r: str(r["temperatures"])),
        ("log Z by sampling (nats)", lambda r: f"{r['log_z_nats']:.3f} ± {r['log_z_error_nats']:.3f}"),
        ("log Z by quadrature (nats)", lambda r: f"{r['log_z_quadrature_nats']:.3f}"),
        ("effective particles", lambda r: f"{r['effective_sample_size']:.0f}"),
        ("acceptance", lambda r: f"{r['acceptance']:.2f}"),
        ("test -log p (nats)", lambda r: f"{r['nll_nats']:.3f} ± {r['error_nats']:.3f}"),
        ("entropy (nats)", lambda r: f"{r['entropy_nats']:.3f}"),
    ],
    "ncsn_images": [
        ("data", lambda r: r["data"]),
        ("draws", lambda r: str(r["samples"])),
        ("confident: draws", lambda r: f"{100 * r['confident_share']:.1f} ± {100 * r['confident_share_error']:.1f} %"),
        ("test images", lambda r: f"{100 * r['test_share']:.1f} %"),
        ("mixed pixels", lambda r: f"{100 * r['mixed_share']:.1f} %"),
        ("accuracy of the classifier", lambda r: f"{100 * r['classifier_accuracy']:.1f} %"),
        ("draws taken for 0, 1, ..., 9", lambda r: ", ".join(map(str, r["classes"]))),
        ("σ₁", lambda r: f"{r['sigma_max']:.1f}"),
        ("score evaluations", lambda r: str(r["score_evaluations"])),
        ("parameters", lambda r: f"{r['parameters']:,}"),
        ("steps", lambda r: f"{r['train_step']:,}"),
        ("training (s)", lambda r: f"{r['train_seconds']:.0f}"),
        ("sampling (s)", lambda r: f"{r['sample_seconds']:.0f}"),
    ],
    "score_matching_speed": [
        ("network", lambda r: r["network"]),
        ("event", lambda r: "×".join(map(str, r["event_shape"]))),
        ("rows", lambda r: str(r["rows"])),
        ("plain pass (ms)", lambda r: f"{r['plain_ms']:.1f}"),
        ("sliced / plain, target 4", lambda r: ratio(r, "sliced")),
        ("with (vᵀs)², target 4", lambda r: ratio(r, "projected")),
        ("finite differences", lambda r: f"{r['finite_difference']:.2f}"),
        ("denoising", lambda r: f"{r['denoising']:.2f}"),
        ("on a ladder", lambda r: f"{r['ladder']:.2f}"),
        ("implicit", lambda r: f"{r['implicit']:.1f}" if "implicit" in r else ""),
        ("exact trace / D products, target 1.5", lambda r: ratio(r, "trace") if "trace" in r else ""),
        ("the same in training, target 1.5", lambda r: ratio(r, "trace_training") if "trace" in r else ""),
        ("met", met),
    ],
    "sde_priors": [
        ("process", lambda r: r["process"]),
        ("variance 0.01", lambda r: f"{r['kl_nats'][0]:.1e}"),
        ("0.25", lambda r: f"{r['kl_nats'][1]:.1e}"),
        ("1", lambda r: f"{r['kl_nats'][2]:.1e}"),
        ("4", lambda r: f"{r['kl_nats'][3]:.1e}"),
    ],
    "sampler_quality": [
        ("solver", lambda r: r["solver"]),
        ("kind", lambda r: r["kind"]),
        ("8 modes, D = 2", lambda r: _needed(r["8 modes, D = 2"])),
        ("4 modes, D = 16", lambda r: _needed(r["4 modes, D = 16"])),
        ("8gaussians, learned", lambda r: _needed(r["8gaussians, learned"])),
    ],
    "sampler_images": [
        ("solver", lambda r: r["solver"]),
        ("kind", lambda r: r["kind"]),
        ("Fréchet distance after 10 evaluations", lambda r: _frechet(r, 10)),
        ("20", lambda r: _frechet(r, 20)),
        ("50", lambda r: _frechet(r, 50)),
        ("100", lambda r: _frechet(r, 100)),
        ("1000", lambda r: _frechet(r, 1000)),
        ("as close as the baseline after", lambda r: _needed(r)),
        ("confident there", lambda r: _confident(r)),
    ],
    "guided_images": [
        ("solver", lambda r: r["solver"]),
        ("guidance", lambda r: f"{r['guidance']:.0f}"),
        ("confident, target 80 %", lambda r: "{:.1f} ± {:.1f} %".format(*(100 * v for v in r["confident"]))),
        ("read as what was asked", lambda r: f"{100 * r['right']:.1f} %" if r["guidance"] else ""),
    ],
    "sampler_speed": [
        ("solver", lambda r: r["solver"]),
        ("evaluations", lambda r: str(r["evaluations"])),
        ("bare network (ms)", lambda r: f"{r['bare_ms']:.0f}"),
        ("with the solver (ms)", lambda r: f"{r['ours_ms']:.0f}"),
        ("ratio, target 1.1", lambda r: ratio(r, "over_bare")),
        ("met", met),
    ],
}


def _steps(row: Row) -> str:
    """Empty for draws that take none."""
    if "levels" in row:
        return f"{row['levels']} × {row['steps']}"
    return str(row.get("steps", ""))


def _needed(curve: Row) -> str:
    """Evaluations, and how many times fewer than the baseline's 1000; the most that were tried where they fail."""
    if curve["needed"] is None:
        return f"> {max(p['evaluations'] for p in curve['points']):.0f}"
    return f"{curve['needed']:.0f} ({1000 / curve['needed']:.0f} ×)"


def _frechet(row: Row, evaluations: float) -> str:
    """At the point that takes about so many evaluations, its own number where it is another; empty where none does."""
    near = [p for p in row["points"] if 0.7 < p["evaluations"] / evaluations < 1.42 and "frechet" in p]
    if not near:
        return ""
    p = min(near, key=lambda p: abs(p["evaluations"] - evaluations))
    exact = round(p["evaluations"]) == evaluations
    return "{:.1f} ± {:.1f}".format(*p["frechet"]) + ("" if exact else f" ({p['evaluations']:.0f})")


def _confident(row: Row) -> str:
    found = [p["confident"] for p in row["points"] if p["evaluations"] == row["needed"]]
    return "{:.0f} ± {:.0f} %".format(*(100 * v for v in found[0])) if found else ""
