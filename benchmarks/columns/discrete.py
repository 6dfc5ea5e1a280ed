"""Tables of normalizing flows, their neighbours and variational autoencoders."""

from benchmarks.columns.cells import Columns, Row, met, ratio

TABLES: dict[str, Columns] = {
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
        ("networks alone (ms)", lambda r: f"{r['bare_ms']:.1f}"),
        ("ratio", lambda r: ratio(r, "ratio")),
        ("normflows / networks alone", lambda r: f"{r['theirs_over_bare']:.2f}"),
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
    "autoregressive_speed": [
        ("flow", lambda r: r["flow"]),
        ("task", lambda r: r["task"]),
        ("bare networks (ms)", lambda r: f"{r['bare_ms']:.1f}"),
        ("ours (ms)", lambda r: f"{r['ours_ms']:.1f}"),
        ("zuko (ms)", lambda r: _milliseconds(r, "zuko")),
        ("nflows (ms)", lambda r: _milliseconds(r, "nflows")),
        ("Pyro (ms)", lambda r: _milliseconds(r, "Pyro")),
        ("ours / bare", lambda r: ratio(r, "over_bare")),
        ("fastest peer / ours", lambda r: ratio(r, "faster_than_peer")),
        ("target", lambda r: _target(r["target"])),
        ("met", met),
    ],
    "autoregressive_growth": [
        ("D", lambda r: str(r["features"])),
        ("rows", lambda r: str(r["rows"])),
        ("hidden", lambda r: "{} × {}".format(len(r["hidden"]), r["hidden"][0])),
        ("ours (ms)", lambda r: f"{r['ours_ms']:.1f}"),
        ("zuko (ms)", lambda r: _milliseconds(r, "zuko")),
        ("nflows (ms)", lambda r: _milliseconds(r, "nflows")),
        ("faster peer / ours", lambda r: ratio(r, "faster_than_peer")),
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
    "planar_energies": [
        ("energy", lambda r: r["energy"]),
        ("K", lambda r: str(r["layers"])),
        ("log Z (nats)", lambda r: f"{r['log_z_nats']:.4f}"),
        ("KL(q ‖ p) (nats)", lambda r: f"{r['kl_nats']:.3f} ± {r['kl_error_nats']:.3f}"),
        ("training (CPU s)", lambda r: f"{r['train_cpu_seconds']:.0f}"),
    ],
    "gaussianization_speed": [
        ("components", lambda r: str(r["components"])),
        ("task", lambda r: r["task"]),
        ("ours (ms)", lambda r: f"{r['ours_ms']:.1f}"),
        ("zuko (ms)", lambda r: f"{r['zuko_ms']:.1f}"),
        ("times as fast", lambda r: ratio(r, "faster_than_zuko")),
        ("target", lambda r: f"{r['target']:g}" if r["target"] else ""),
        ("met", lambda r: met(r) if r["target"] else ""),
    ],
    "gaussianization_tails": [
        ("distance", lambda r: f"{r['distance']:g}"),
        ("ours: error of z", lambda r: f"{r['ours_z_error']:.0e}"),
        ("of x, there and back", lambda r: f"{r['ours_round_trip_error']:.0e}"),
        ("zuko: error of z", lambda r: f"{r['zuko_z_error']:.0e}"),
        ("of x, there and back ", lambda r: f"{r['zuko_round_trip_error']:.0e}"),
    ],
    "rbig": [
        ("toy", lambda r: r["toy"]),
        ("marginals", lambda r: f"{r['marginal']} ({r['components']})"),
        ("entropy (nats)", lambda r: f"{r['entropy_nats']:.3f}"),
        ("first layer removes (nats)", lambda r: f"{r['first_removed_nats']:.3f}"),
        ("the others", lambda r: f"{r['others_removed_nats']:.3f}"),
        ("held-out -log p (nats)", lambda r: f"{r['nll_nats']:.3f} ± {r['error_nats']:.3f}"),
        ("gap (nats)", lambda r: f"{r['gap_nats']:+.3f}"),
        ("CPU (s)", lambda r: f"{r['cpu_seconds']:.0f}"),
    ],
    "mintnet_inverse": [
        ("latents", lambda r: r["latents"]),
        ("dtype", lambda r: r["dtype"]),
        ("scheme", lambda r: r["scheme"]),
        ("iterations a layer, mean", lambda r: f"{r['mean_iterations']:.1f}"),
        ("most", lambda r: str(r["max_iterations"])),
        ("rows by degrees", lambda r: str(r["by_degrees"])),
        ("largest residual of a layer", lambda r: f"{r['max_residual']:.0e}"),
        ("error of a logit", lambda r: _error(r, "max_error")),
        ("of a pixel", lambda r: _error(r, "max_pixel_error")),
        ("of z, there and back", lambda r: _error(r, "max_latent_error")),
        ("time (s)", lambda r: f"{r['seconds']:.1f}"),
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
}


def _milliseconds(row: Row, peer: str) -> str:
    """Empty where the peer has no such flow."""
    return f"{row[f'{peer}_ms']:.1f}" if f"{peer}_ms" in row else ""


def _target(target: dict[str, float]) -> str:
    parts = [f"≤ {target['bare']:g} × bare"] if "bare" in target else []
    return ", ".join([*parts, f"≥ {target['peer']:g} × peer"])


def _error(row: Row, name: str) -> str:
    """Empty where x is not known."""
    return f"{row[name]:.0e}" if name in row else ""
