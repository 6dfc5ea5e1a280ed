"""Draws from trained runs and ways through their latent space, as files and pictures."""

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core import GenerativeModel
from core.bases import Base
from core.nets.masked import MaskedMLP
from discrete import Flow, interpolate
from experiment.device import resolve_device
from experiment.errors import NumericalError, UserError
from experiment.files import write_atomic
from experiment.plots import png, sample_figure
from experiment.run import Run, load_run, open_run
from experiment.threads import set_threads

Written = tuple[Path, Path]  # the .npy file, and the picture


def draw_samples(
    run: str | Path,
    *,
    count: int,
    seed: int = 0,
    temperature: float = 1.0,
    out: Path | None = None,
    device: str = "cpu",
    threads: int = 0,
) -> Written:
    """Draws from a trained run.

    Args:
        run: the run folder.
        count: number of samples, 1 or more.
        seed: of the draws.
        temperature: factor on the draws of a flow's base; below 1 for samples nearer the mode.
        out: the `.npy` file; `samples.npy` in the run folder where omitted. The picture lies beside it.
        device: where to compute.
        threads: CPU threads, 0 to choose by the size of the model.

    Returns:
        The file of the samples `(count, *event)` and the picture.

    Raises:
        UserError: no run, a damaged checkpoint, a count below 1, a seed out of range, a file that is no .npy, or a
            temperature that the model does not know.
        NumericalError: a sample that is not finite.
    """
    _check(count, seed, out)
    folder, model, place = _load(run, device, threads)
    generator = torch.Generator(place).manual_seed(seed)
    if temperature == 1:
        x = model.sample((count,), generator=generator)
    else:
        try:
            x = _flow(folder, model, "--temperature").sample((count,), generator=generator, temperature=temperature)
        except ValueError as error:
            raise UserError(f"{folder.name}: {error}") from error
    title = "Samples" if temperature == 1 else f"Samples at temperature {temperature:g}"
    return _write(folder, x, out or folder.path / "samples.npy", title=title)


def draw_interpolations(
    run: str | Path,
    *,
    count: int,
    steps: int = 8,
    seed: int = 0,
    out: Path | None = None,
    data_root: Path | None = None,
    device: str = "cpu",
    threads: int = 0,
) -> Written:
    """Ways between pairs of test rows through the latent space of a trained flow.

    Args:
        run: the run folder.
        count: number of ways, 1 or more.
        steps: points on each, both ends included, 2 or more.
        seed: of the choice of pairs and of the dequantization.
        out: the `.npy` file; `interpolations.npy` in the run folder where omitted. The picture lies beside it.
        data_root: folder of the data files, where it moved since training.
        device: where to compute.
        threads: CPU threads, 0 to choose by the size of the model.

    Returns:
        The file of the ways `(count, steps, *event)` and the picture.

    Raises:
        UserError: as of `draw_samples`, a model that is no flow, or fewer than 2 steps.
        NumericalError: a point that is not finite.
    """
    _check(count, seed, out)
    if steps < 2:
        raise UserError(f"--interpolate takes 2 steps or more, but was given {steps}.")
    folder, model, place = _load(run, device, threads)
    flow = _flow(folder, model, "--interpolate")
    test = folder.load_data(data_root).test
    ends = torch.randint(len(test), (2, count), generator=torch.Generator().manual_seed(seed))
    x_0, x_1 = (test[rows].to(place) for rows in ends)
    ways = interpolate(flow, x_0, x_1, steps=steps, generator=torch.Generator(place).manual_seed(seed))
    out = out or folder.path / "interpolations.npy"
    return _write(folder, ways.movedim(0, 1), out, title="Between test rows", columns=steps)


def _check(count: int, seed: int, out: Path | None) -> None:
    if count < 1:
        raise UserError(f"--count must be 1 or more, but is {count}.")
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed must lie within 0 and 2**63 - 1, but is {seed}.")
    if out is not None and out.suffix != ".npy":
        raise UserError(f"--out must end in .npy, beside which the picture goes, but is {out}.")


def _load(run: str | Path, device: str, threads: int) -> tuple[Run, GenerativeModel, torch.device]:
    place = resolve_device(device)
    folder = open_run(run)
    model = load_run(folder.path, device=place)
    in_steps = any(isinstance(module, MaskedMLP) for module in model.modules())
    set_threads(threads or (1 if in_steps else 0), model)  # each step is too small to share
    return folder, model, place


def _flow(folder: Run, model: GenerativeModel, option: str) -> Flow:
    """The model, where it is a flow down to its base."""
    inner = model
    while isinstance(inner, Flow):
        inner = inner.base
    if not isinstance(model, Flow) or not isinstance(inner, Base):
        raise UserError(f"{option} needs a flow, but {folder.name} is a {folder.config.model.kind}.")
    return model


def _write(folder: Run, x: Tensor, out: Path, *, title: str, columns: int | None = None) -> Written:
    events = x.flatten(0, 1) if columns else x
    bad = (~events.flatten(1).isfinite().all(1)).nonzero()
    if len(bad):
        raise NumericalError(f"{folder.name}: sample {bad[0].item()} is not finite.")
    buffer = io.BytesIO()
    np.save(buffer, x.cpu().numpy(), allow_pickle=False)
    write_atomic(out, buffer.getvalue())
    shape = folder.environment["image_shape"]
    figure = sample_figure(
        {folder.name: events.cpu().numpy().astype(np.float64)},
        image_shape=None if shape is None else tuple(shape),
        bins=folder.environment["bins"],
        columns=columns,
        title=title,
    )
    write_atomic(out.with_suffix(".png"), png(figure))
    return out, out.with_suffix(".png")
