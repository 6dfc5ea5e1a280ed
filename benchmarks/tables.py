"""Tables of the docs from the JSON files: `--write` makes them, `--check` fails where docs and JSON disagree."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
PAGES = tuple(
    ROOT / page
    for page in (
        "docs/results.md",
        "docs/score_matching.md",
        "docs/sampling.md",
        "docs/likelihood.md",
        "docs/boltzmann.md",
        "docs/planar.md",
        "docs/vae.md",
        "README.md",
    )
)
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end table -->)", re.DOTALL)

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]

TABLES: dict[str, list[Column]] = {
    "closed_form": [
        ("process", lambda r: r["process"]),
        ("D", lambda r: str(r["dimensions"])),
        ("largest error (nats)", lambda r: f"{r['max_error_nats']:.1e}"),
        ("largest reported solver error (nats)", lambda r: f"{r['max_reported_solver_error_nats']:.1e}"),
        ("NFE", lambda r: f"{r['mean_nfe']:.0f}"),
    ],
    "toys": [
        ("toy", lambda r: r["toy"]),
        ("model", lambda r: r["model"]),
        ("entropy (nats)", lambda r: f"{r['entropy_nats']:.3f}"),
        ("test -log p (nats)", lambda r: f"{r['nll_nats']:.3f} ± {r['error_nats']:.3f}"),
        ("gap (nats)", lambda r: f"{r['gap_nats']:+.3f}"),
        ("training (s)", lambda r: f"{r['train_seconds']:.0f}"),
    ],
    "glow_memory": [
        ("activation", lambda r: r["activation"]),
        ("depth", lambda r: str(r["depth"])),
        ("stored (MiB)", lambda r: f"{r['stored_mib']:.1f}"),
        ("recomputed (MiB)", lambda r: f"{r['recomputed_mib']:.1f}"),
        ("stored / depth 8", lambda r: f"{r['stored_growth']:.2f}"),
        ("recomputed / depth 8", lambda r: f"{r['recomputed_growth']:.2f}"),
        ("time, recomputed / stored", lambda r: f"{r['time_ratio']:.2f}"),
        ("gradient difference, float64", lambda r: f"{r['float64_difference']:.0e}"),
        ("float32", lambda r: f"{r['float32_difference']:.0e}"),
        ("float32, worst tensor", lambda r: f"{r['float32_worst_tensor']:.0e}"),
        ("float32 from float64: stored", lambda r: f"{r['stored_rounding']:.0e}"),
        ("recomputed", lambda r: f"{r['recomputed_rounding']:.0e}"),
    ],
    "glow_speed": [
        ("event", lambda r: "×".join(map(str, r["event_shape"]))),
        ("levels × steps, width", lambda r: f"{r['levels']} × {r['depth']}, {r['hidden']}"),
        ("rows", lambda r: str(r["rows"])),
        ("threads", lambda r: str(r["threads"])),
        ("task", lambda r: r["task"]),
        ("ours (ms)", lambda r: f"{r['ours_ms']:.1f}"),
        ("normflows (ms)", lambda r: f"{r['theirs_ms']:.1f}"),
        ("ratio", lambda r: _ratio(r, "ratio")),
    ],
    "autoregressive_speed": [
        ("flow", lambda r: r["flow"]),
        ("task", lambda r: r["task"]),
        ("bare networks (ms)", lambda r: f"{r['bare_ms']:.1f}"),
        ("ours (ms)", lambda r: f"{r['ours_ms']:.1f}"),
        ("zuko (ms)", lambda r: _milliseconds(r, "zuko")),
        ("nflows (ms)", lambda r: _milliseconds(r, "nflows")),
        ("Pyro (ms)", lambda r: _milliseconds(r, "Pyro")),
        ("ours / bare", lambda r: _ratio(r, "over_bare")),
        ("fastest peer / ours", lambda r: _ratio(r, "faster_than_peer")),
        ("target", lambda r: _target(r["target"])),
        ("met", lambda r: "yes" if r["met"] else "no"),
    ],
    "autoregressive_growth": [
        ("D", lambda r: str(r["features"])),
        ("hidden", lambda r: "{} × {}".format(len(r["hidden"]), r["hidden"][0])),
        ("ours (ms)", lambda r: f"{r['ours_ms']:.1f}"),
        ("zuko (ms)", lambda r: _milliseconds(r, "zuko")),
        ("nflows (ms)", lambda r: _milliseconds(r, "nflows")),
        ("faster peer / ours", lambda r: _ratio(r, "faster_than_peer")),
    ],
    "inverse_modes": [
        ("layer", lambda r: r["layer"]),
        ("mode", lambda r: f"`{r['mode']}`"),
        ("time (ms)", lambda r: f"{r['ms']:.1f}"),
        ("passes, mean", lambda r: f"{r['mean_passes']:.1f}"),
        ("passes, most", lambda r: str(r["max_passes"])),
        ("largest residual", lambda r: f"{r['max_residual']:.0e}"),
        ("largest error", lambda r: f"{r['max_error']:.0e}"),
    ],
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
        ("sliced / plain, target 4", lambda r: _ratio(r, "sliced")),
        ("with (vᵀs)², target 4", lambda r: _ratio(r, "projected")),
        ("finite differences", lambda r: f"{r['finite_difference']:.2f}"),
        ("denoising", lambda r: f"{r['denoising']:.2f}"),
        ("on a ladder", lambda r: f"{r['ladder']:.2f}"),
        ("implicit", lambda r: f"{r['implicit']:.1f}" if "implicit" in r else ""),
        ("exact trace / D products, target 1.5", lambda r: _ratio(r, "trace") if "trace" in r else ""),
        ("the same in training, target 1.5", lambda r: _ratio(r, "trace_training") if "trace" in r else ""),
        ("met", lambda r: "yes" if r["met"] else "no"),
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
        ("ratio, target 1.1", lambda r: _ratio(r, "over_bare")),
        ("met", lambda r: "yes" if r["met"] else "no"),
    ],
    "ode_likelihood": [
        ("problem", lambda r: r["problem"]),
        ("method", lambda r: r["method"] if r["method"] == "yardstick" else f"`{r['method']}`"),
        ("at", lambda r: r["at"]["level"].split(", ")[1] if r["at"] and "level" in r["at"] else ""),
        ("evaluations a row", lambda r: f"{r['at']['nfe']:.0f}" if r["at"] else ""),
        ("passes of the network", lambda r: f"{r['at']['model_rows']:.0f}" if r["at"] else ""),
        ("rms error (nats)", lambda r: f"{r['at']['rms_error_nats']:.1e}" if r["at"] else ""),
        ("CPU (s)", lambda r: f"{r['at']['seconds']:.2f}" if r["at"] else ""),
        ("times as fast", lambda r: f"{r['speed_up']:.2f}" if r["speed_up"] else "none as close"),
    ],
    "ode_growth": [
        ("along", lambda r: r["along"]),
        ("at", lambda r: str(r["at"])),
        ("method", lambda r: r["method"] if r["method"] == "yardstick" else f"`{r['method']}`"),
        ("evaluations a row", lambda r: f"{r['nfe']:.0f}"),
        ("passes of the network", lambda r: f"{r['model_rows']:.0f}"),
        ("rms error (nats)", lambda r: f"{r['rms_error_nats']:.1e}"),
        ("CPU (ms a row)", lambda r: f"{r['ms_a_row']:.2f}"),
    ],
    "continuous_toys": [
        ("toy", lambda r: r["toy"]),
        ("model", lambda r: r["model"]),
        ("entropy (nats)", lambda r: f"{r['entropy_nats']:.3f}"),
        ("test -log p (nats)", lambda r: f"{r['nll_nats']:.3f} ± {r['error_nats']:.3f}"),
        ("± solver", lambda r: f"{r['solver_error_nats']:.4f}"),
        ("gap (nats), target 0.10", lambda r: f"{r['gap_nats']:+.3f}"),
        ("met", lambda r: "yes" if r["met"] else "no"),
        ("steps", lambda r: f"{r['steps']:,}"),
        ("training (s)", lambda r: f"{r['train_seconds']:.0f}"),
    ],
    "trace_calibration": [
        ("estimator", lambda r: r["estimator"]),
        ("point-draws", lambda r: str(r["point_draws"])),
        ("standard error (nats)", lambda r: f"{r['mean_std_error_nats']:.3f}"),
        ("rms error (nats)", lambda r: f"{r['rms_error_nats']:.3f}"),
        ("mean error (nats)", lambda r: f"{r['bias_nats']:+.3f} ± {r['bias_error_nats']:.3f}"),
        ("Student-t 95 % holds it", lambda r: f"{100 * r['covered_student']:.1f} %"),
        ("normal 95 % holds it", lambda r: f"{100 * r['covered_normal']:.1f} %"),
    ],
    "ode_overhead": [
        ("what", lambda r: r["what"]),
        ("ms", lambda r: f"{r['ms']:.2f}"),
        ("forward passes", lambda r: f"{r['forwards']:.1f}" if "forwards" in r else ""),
        ("target", lambda r: _within(r)),
    ],
    "planar_energies": [
        ("energy", lambda r: r["energy"]),
        ("K", lambda r: str(r["layers"])),
        ("log Z (nats)", lambda r: f"{r['log_z_nats']:.4f}"),
        ("KL(q ‖ p) (nats)", lambda r: f"{r['kl_nats']:.3f} ± {r['kl_error_nats']:.3f}"),
        ("training (CPU s)", lambda r: f"{r['train_cpu_seconds']:.0f}"),
    ],
    "vae_posteriors": [
        ("posterior", lambda r: r["posterior"]),
        ("steps", lambda r: str(r["layers"])),
        ("ELBO (nats)", lambda r: f"{r['elbo_nats']:.3f} ± {r['elbo_error_nats']:.3f}"),
        ("log p - ELBO (nats)", lambda r: f"{r['gap_nats']:.3f} ± {r['gap_error_nats']:.3f}"),
        (
            "gain on the row above, paired (nats)",
            lambda r: f"{r['gain_nats']:+.3f} ± {r['gain_error_nats']:.3f}" if "gain_nats" in r else "",
        ),
        (
            "log p - bound of 64 draws (nats)",
            lambda r: f"{r['weighted_gap_nats']:.3f} ± {r['weighted_gap_error_nats']:.3f}",
        ),
        ("parameters", lambda r: f"{r['parameters']:,}"),
        ("training (CPU s)", lambda r: f"{r['train_cpu_seconds']:.0f}"),
    ],
    "mnist_glow": [
        ("Glow", lambda r: f"{r['levels']} levels × {r['depth']} steps, {r['hidden'][0]} channels"),
        ("kind", lambda r: r["kind"]),
        ("bits/dim", lambda r: f"{r['bits_per_dim']:.3f} ± {r['bits_per_dim_error']:.3f}"),
        ("log p (nats)", lambda r: f"{r['log_prob_nats']:.1f} ± {r['sampling_error_nats']:.1f}"),
        ("round trip, float32", lambda r: f"{r['round_trip_max']:.1e}"),
        ("parameters", lambda r: f"{r['parameters']:,}"),
        ("steps", lambda r: f"{r['train_step']:,}"),
        ("training (s)", lambda r: f"{r['train_seconds']:.0f}"),
        ("evaluation (s)", lambda r: f"{r['seconds']:.0f}"),
    ],
    "bsds300": [
        ("model", lambda r: f"{r['model']}({r['layers']}), {len(r['hidden'])} × {r['hidden'][0]}"),
        ("kind", lambda r: r["kind"]),
        ("test log p (nats)", lambda r: f"{r['log_prob_nats']:.2f} ± {r['sampling_error_nats']:.2f}"),
        ("round trip, float32", lambda r: f"{r['round_trip_max']:.1e}"),
        ("parameters", lambda r: f"{r['parameters']:,}"),
        ("steps", lambda r: f"{r['train_step']:,}"),
        ("training (s)", lambda r: f"{r['train_seconds']:.0f}"),
        ("evaluation (s)", lambda r: f"{r['seconds']:.0f}"),
    ],
    "mnist_autoregressive": [
        ("config", lambda r: f"`mnist/{r['model']}`"),
        ("logit space (nats)", lambda r: f"{r['logit_space_nats']:.1f} ± {r['logit_space_error_nats']:.1f}"),
        ("MAF paper (nats)", lambda r: f"{r['published_nats']:.1f}"),
        ("kind", lambda r: r["kind"]),
        ("bits/dim", lambda r: f"{r['bits_per_dim']:.3f} ± {r['bits_per_dim_error']:.3f}"),
        ("parameters", lambda r: f"{r['parameters']:,}"),
        ("steps of 100 images", lambda r: f"{r['train_step']:,}"),
        ("training (s)", lambda r: f"{r['train_seconds']:.0f}"),
    ],
    "distillation": [
        ("teacher's data", lambda r: f"{r['data']}, D = {r['dimensions']}"),
        ("KL(student ‖ teacher) (nats)", lambda r: f"{r['kl_nats']:.4f} ± {r['kl_error_nats']:.4f}"),
        ("teacher, test log p (nats)", lambda r: f"{r['teacher_log_prob_nats']:.3f} ± {r['teacher_error_nats']:.3f}"),
        ("student, test log q (nats)", lambda r: f"{r['student_log_prob_nats']:.3f} ± {r['student_error_nats']:.3f}"),
        ("student (bits/dim)", lambda r: f"{r['student_bits_per_dim']:.3f}"),
        ("log p/q at draws of the teacher: median (nats)", lambda r: f"{r['missed_median_nats']:.3f}"),
        ("share above 3 nats", lambda r: f"{100 * r['far_share']:.2f} %"),
        ("modes, total variation", lambda r: f"{r['mode_distance']:.3f}" if "mode_distance" in r else ""),
        ("1024 draws: student (ms)", lambda r: f"{r['student_ms']:.1f}"),
        ("teacher, incremental (ms)", lambda r: f"{r['incremental_ms']:.1f}"),
        ("teacher, D passes a layer (ms)", lambda r: f"{r['sequential_ms']:.1f}"),
        ("teacher, training (s)", lambda r: f"{r['train_seconds']:.0f}"),
        ("distillation (s)", lambda r: f"{r['distill_seconds']:.0f}"),
    ],
    "digits": [
        ("model", lambda r: r["run"]),
        ("kind", lambda r: r["kind"]),
        ("log p (nats)", lambda r: f"{r['log_prob_nats']:.2f}"),
        ("bits/dim", lambda r: f"{r['bits_per_dim']:.3f} ± {r['bits_per_dim_error']:.3f}"),
        ("± rows", lambda r: f"{r['sampling_error_nats']:.3f}"),
        ("± draws", lambda r: f"{r['dequantization_error_nats']:.3f}"),
        ("± trace", lambda r: f"{r['trace_error_nats']:.3f}"),
        ("± solver", lambda r: f"{r['solver_error_nats']:.4f}"),
        ("parameters", lambda r: f"{r['parameters']:,}"),
        ("training (s)", lambda r: f"{r['train_seconds']:.0f}"),
        ("evaluation (s)", lambda r: f"{r['seconds']:.0f}"),
    ],
}


def _steps(row: Row) -> str:
    """Empty for draws that take none."""
    if "levels" in row:
        return f"{row['levels']} × {row['steps']}"
    return str(row.get("steps", ""))


def _milliseconds(row: Row, peer: str) -> str:
    """Empty where the peer has no such flow."""
    return f"{row[f'{peer}_ms']:.1f}" if f"{peer}_ms" in row else ""


def _within(row: Row) -> str:
    """What was asked of a row of overheads, and whether it is so."""
    if "met" not in row:
        return ""
    said = f"{row['over_one_probe']:.1f} × one probe, target 5" if "over_one_probe" in row else "0.8 ms"
    return f"{said}: {'met' if row['met'] else 'missed'}"


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


def _ratio(row: Row, name: str) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(row[name], *row[f"{name}_quartiles"])


def _target(target: dict[str, float]) -> str:
    parts = [f"≤ {target['bare']:g} × bare"] if "bare" in target else []
    return ", ".join([*parts, f"≥ {target['peer']:g} × peer"])


def table(name: str) -> str:
    """One table with its provenance, as Markdown."""
    content = json.loads((RESULTS / f"{name}.json").read_text())
    columns = TABLES[name]
    lines = [[title for title, _ in columns], ["---"] * len(columns)]
    lines += [[cell(row) for _, cell in columns] for row in content["rows"]]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    source = f"Measured {content['date']} on {content['machine']}, torch {content['versions']['torch']}"
    return f"{text}\n\n{source}; from [`docs/results/{name}.json`](/docs/results/{name}.json).\n"


def rendered(page: str) -> str:
    """The page with every marked table made anew; one that was never measured stays as it is."""

    def anew(m: re.Match[str]) -> str:
        return m[1] + table(m[2]) + m[3] if (RESULTS / f"{m[2]}.json").exists() else m[0]

    return BLOCK.sub(anew, page)


def main(arguments: list[str]) -> None:
    """Writes or checks every page."""
    for path in PAGES:
        old, new = path.read_text(), rendered(path.read_text())
        if arguments == ["--write"]:
            path.write_text(new)
        elif old != new:
            sys.exit(f"{path.relative_to(ROOT)} does not show its JSON; run python -m benchmarks.tables --write")


if __name__ == "__main__":
    main(sys.argv[1:] or ["--check"])
