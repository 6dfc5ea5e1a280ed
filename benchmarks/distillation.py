"""MAF teachers distilled into IAF students, in 2 and in 63 dimensions: divergence both ways, modes, time of a draw."""

import math
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.record import DATA, DOCS
from benchmarks.toys import density
from core import bits_per_dim
from discrete import IAF, MAF, Flow, MaskedAutoregressive, Triangular
from discrete.inference import distill, kl_divergence
from experiment.data import TOY_ENTROPY_NATS, bsds300_patches, toy
from experiment.files import write_atomic
from experiment.plots import density_figure, png
from experiment.threads import keep_freed_memory

DRAWS, TIMED_DRAWS, RUNS = 100_000, 1024, 7
EXTENT = (-4.5, 4.5, -4.5, 4.5)
CLIP, FAR_NATS = 5.0, 3.0
SPLINES = {"transformer": "spline", "bound": 5.0, "hidden": (64, 64), "activation": "silu"}
AFFINE = {"hidden": (128, 128), "activation": "silu"}

Row = dict[str, Any]


class Training(NamedTuple):
    """How long and how fast teacher or student learn."""

    steps: int
    rows: int
    learning_rate: float


TOY = Training(3000, 512, 2e-3), Training(6000, 512, 3e-3)
PATCHES = Training(1500, 512, 1e-3), Training(2000, 512, 3e-3)


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a teacher."""
    keep_freed_memory()
    rows = [_eight_gaussians(), _patches()]
    plans = {"8gaussians": TOY, "bsds300": PATCHES}
    settings: dict[str, Any] = {
        f"{name}_{role}": training._asdict()
        for name, plan in plans.items()
        for role, training in zip(("teacher", "student"), plan, strict=True)
    }
    figures = {"kl_draws": DRAWS, "timed_draws": TIMED_DRAWS, "gradient_clip": CLIP, "far_nats": FAR_NATS}
    return {**settings, **figures}, rows


def _eight_gaussians() -> Row:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = toy("8gaussians", train_rows=200_000)
    teacher, student = MAF(2, layers=4, **SPLINES), IAF(2, layers=4, **SPLINES)
    row = {"data": "8gaussians", "entropy_nats": TOY_ENTROPY_NATS["8gaussians"]}
    row |= _row(teacher, student, data.train, data.test, *TOY)
    row |= _modes(teacher, student)
    panels = {"teacher (MAF)": density(teacher, extent=EXTENT), "student (IAF)": density(student, extent=EXTENT)}
    title = f"KL(student ‖ teacher) = {row['kl_nats']:.3f} ± {row['kl_error_nats']:.3f} nats"
    write_atomic(DOCS / "figures" / "distillation.png", png(density_figure(panels, extent=EXTENT, title=title)))
    return row


def _patches() -> Row:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    data = bsds300_patches(DATA, train_rows=200_000, validation_rows=1000, test_rows=10_000)
    whitening = _whitening(data.train)
    teacher = Flow(whitening, MAF(63, layers=3, **AFFINE))
    student = Flow(whitening, IAF(63, layers=3, **AFFINE))
    return {"data": "BSDS300 patches", **_row(teacher, student, data.train, data.test, *PATCHES)}


def _whitening(x: Tensor) -> Triangular:
    """z = T (x - μ) with mean 0 and covariance I over the rows, fixed."""
    T = torch.linalg.inv(torch.linalg.cholesky(x.double().T.cov()))
    layer = Triangular(x.shape[1])
    with torch.no_grad():
        layer.weight.factor.copy_(T.tril(-1) + T.diagonal().log().diag())
        layer.bias.copy_(-(T @ x.double().mean(0)))
    return layer.requires_grad_(False)


def _row(teacher: Flow, student: Flow, train: Tensor, test: Tensor, first: Training, second: Training) -> Row:
    train_seconds = _seconds(lambda: _fit(teacher, train, first))
    generator = torch.Generator().manual_seed(1)
    learned = _seconds(
        lambda: distill(
            student,
            teacher,
            steps=second.steps,
            samples=second.rows,
            learning_rate=second.learning_rate,
            gradient_clip=CLIP,
            generator=generator,
        )
    )
    student.eval()
    times = {"train_seconds": train_seconds, "distill_seconds": learned, **_sampling(teacher, student)}
    return {
        "dimensions": train.shape[1],
        "threads": torch.get_num_threads(),
        **_divergences(teacher, student, test),
        **times,
    }


def _fit(flow: Flow, x: Tensor, training: Training) -> None:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(flow.parameters(), lr=training.learning_rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
    for _ in range(training.steps):
        chosen = torch.randint(len(x), (training.rows,), generator=generator)
        optimizer.zero_grad(set_to_none=True)
        (-flow.log_prob(x[chosen]).mean()).backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), CLIP)
        optimizer.step()
        cosine.step()
    flow.eval()


@torch.no_grad()
def _divergences(teacher: Flow, student: Flow, test: Tensor) -> Row:
    """KL(student ‖ teacher), and what draws of the teacher say about modes that the student has dropped."""
    generator = torch.Generator().manual_seed(2)
    kl = kl_divergence(student, teacher, samples=DRAWS, generator=generator)
    x = teacher.sample((DRAWS,), generator=generator)
    missed = teacher.log_prob(x) - student.log_prob(x)
    log_prob = {"teacher": teacher.log_prob(test), "student": student.log_prob(test)}
    return {
        "kl_nats": kl.estimate_nats.item(),
        "kl_error_nats": kl.std_error_nats.item(),
        "missed_mean_nats": missed.mean().item(),
        "missed_mean_error_nats": missed.std().item() / DRAWS**0.5,
        "missed_median_nats": missed.median().item(),
        "far_share": (missed > FAR_NATS).double().mean().item(),
        **{f"{name}_log_prob_nats": value.mean().item() for name, value in log_prob.items()},
        **{f"{name}_error_nats": value.std().item() / len(test) ** 0.5 for name, value in log_prob.items()},
        "student_bits_per_dim": bits_per_dim(log_prob["student"], student.event_shape).mean().item(),
    }


def _modes(teacher: Flow, student: Flow) -> Row:
    """Shares of draws nearest each of the eight centres, and their distance in total variation."""
    angle = torch.arange(8) * math.pi / 4
    centres = 4 * torch.stack([angle.cos(), angle.sin()], 1) / 1.414
    generator = torch.Generator().manual_seed(3)
    shares = {}
    for name, flow in {"teacher": teacher, "student": student}.items():
        nearest = torch.cdist(flow.sample((DRAWS,), generator=generator), centres).argmin(1)
        shares[name] = nearest.bincount(minlength=8).double() / DRAWS
    distance = 0.5 * (shares["teacher"] - shares["student"]).abs().sum().item()
    return {**{f"{name}_modes": share.tolist() for name, share in shares.items()}, "mode_distance": distance}


def _sampling(teacher: Flow, student: Flow) -> Row:
    """Median time of draws: the student's one pass, the teacher inverted incrementally and in D passes a layer."""
    contenders: dict[str, Callable[[], Tensor]] = {
        "student": lambda: student.sample((TIMED_DRAWS,)),
        "incremental": lambda: _sampled(teacher, "incremental"),
        "sequential": lambda: _sampled(teacher, "sequential"),
    }
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for run in range(RUNS + 1):
        for name, draw in contenders.items():
            seconds = _seconds(draw)
            if run > 0:
                taken[name].append(seconds)
    return {f"{name}_ms": 1e3 * median(seconds) for name, seconds in taken.items()}


def _sampled(flow: Flow, mode: str) -> Tensor:
    for module in flow.modules():
        if isinstance(module, MaskedAutoregressive):
            module.inverse_mode = mode
    return flow.sample((TIMED_DRAWS,))


def _seconds(task: Callable[[], object]) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start
