"""Draws from trained runs and ways through their latent space, as files and pictures."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cflows.interpolation import interpolate as interpolate_scores
from cflows.samplers.probability_flow_ode import ProbabilityFlow
from core.bases import Base
from core.latents import LatentModel, interpolate
from core.rng import Rng
from discrete import Flow
from experiment.data import Dataset
from experiment.distributed.ranks import ALONE, Ranks
from experiment.draws.drawing import (
    Opened,
    Rows,
    Written,
    check_finite,
    check_out,
    chosen_labels,
    labels_in_turn,
    one_sentence,
    open_for_draws,
    stream,
    write_labels,
    write_picture,
    write_stream,
)
from experiment.draws.reverse_process import ReverseProcess
from experiment.draws.score_draws import Motion, score_process
from experiment.errors import UserError


def draw_samples(
    run: str | Path,
    *,
    count: int,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    chunk: int | None = None,
    labels: Sequence[int] | None = None,
    guidance: float | None = None,
    temperature: float = 1.0,
    settings: Sequence[str] = (),
    animate: Path | None = None,
    out: Path | None = None,
    device: str = "cpu",
    threads: int = 0,
    ranks: Ranks = ALONE,
) -> Written:
    """Draws from a trained run.

    Args:
        run: the run folder.
        count: number of samples, 1 or more.
        seed: of the draws.
        seeds: one a sample instead, on which alone it then depends, up to rounding.
        chunk: most samples at a time, which bounds the memory whatever the count; all at once where omitted. Without
            `seeds` the samples depend on it.
        labels: classes, which the samples have in turn; all of them where omitted, of a run with labels.
        guidance: w of `cflows.guidance.classifier_free`, of a score model that was trained with `label_dropout`.
        temperature: factor on the draws of a flow's base; below 1 for samples nearer the mode.
        settings: of the sampler, such as `sampler.steps=50`, instead of the run's own.
        animate: a .gif or .mp4 file of how noise becomes the first of the samples, of a score model under an SDE.
        out: the `.npy` file; `samples.npy` in the run folder where omitted. The picture lies beside it, and the labels,
            where there are any, as `*_labels.npy`.
        device: where to compute.
        threads: CPU threads, 0 to choose by the size of the model.
        ranks: the processes that share the chunks, where there are `seeds`; the first one writes.

    Returns:
        The file of the samples `(count, *event)`, the picture, the labels and the animation; nothing where another
        process writes.

    Raises:
        UserError: no run, a damaged checkpoint, a count below 1, a seed out of range, a file of the wrong kind, or what
            the model does not know: a label, a temperature, guidance, a setting.
        NumericalError: a sample that is not finite; no file is written then.
    """
    rows = Rows(count=count, seed=seed, seeds=seeds, chunk=chunk, ranks=ranks)
    check_out(out)
    opened = open_for_draws(run, settings=settings, device=device, threads=threads, ranks=ranks)
    classes = chosen_labels(opened, labels)
    process = score_process(opened, guidance=guidance, option=None if animate is None else "--animate")
    columns = len(classes) if 1 < len(classes) <= 16 else None  # a class a column
    motion = None if animate is None else Motion(opened, animate, columns=columns)
    flow = None if temperature == 1 else _flow(opened, "--temperature")

    def draw(chunk: range, generator: Rng) -> Tensor:
        context = opened.context(labels_in_turn(classes, chunk))
        shape = (len(chunk),)
        if flow is not None:
            return flow.sample(shape, context=context, generator=generator, temperature=temperature)
        if process is None:
            return opened.model.sample(shape, context=context, generator=generator)
        callback = motion.callback(chunk) if motion else None
        return process.sample(*shape, context=context, guidance=guidance, generator=generator, callback=callback)

    out = out or opened.run.path / "samples.npy"
    title = "Samples" if temperature == 1 else f"Samples at temperature {temperature:g}"
    drawn = stream(opened, rows, draw)
    if not ranks.first:
        deque(drawn, maxlen=0)  # its share of each turn
        return ()
    x = write_stream(out, (count, *opened.model.event_shape), drawn)
    written = [out, write_picture(opened, out, {opened.run.name: x}, title=title, columns=columns)]
    if classes:
        written.append(write_labels(out, rows, classes))
    if motion and process:
        written.append(motion.write(process))
    return tuple(written)


def draw_interpolations(
    run: str | Path,
    *,
    count: int,
    steps: int = 8,
    seed: int = 0,
    labels: Sequence[int] | None = None,
    settings: Sequence[str] = (),
    out: Path | None = None,
    data_root: Path | None = None,
    device: str = "cpu",
    threads: int = 0,
) -> Written:
    """Ways between pairs of test rows through the latent space of a flow, or of a score model's probability flow.

    Args:
        run: the run folder.
        count: number of ways, 1 or more.
        steps: points on each, both ends included, 2 or more.
        seed: of the choice of pairs and of the dequantization.
        labels: classes, which the ways have in turn, each between two rows of one class; all of them where omitted, of
            a run with labels.
        settings: of the probability flow of a score model, such as `sampler.rtol=1e-3`.
        out: the `.npy` file; `interpolations.npy` in the run folder where omitted. The picture lies beside it.
        data_root: folder of the data files, where it moved since training.
        device: where to compute.
        threads: CPU threads, 0 to choose by the size of the model.

    Returns:
        The file of the ways `(count, steps, *event)`, the picture and the labels.

    Raises:
        UserError: as of `draw_samples`, a model or sampler that has no latent space, or fewer than 2 steps.
        NumericalError: a point that is not finite.
    """
    rows = Rows(count=count, seed=seed)
    check_out(out)
    if steps < 2:
        raise UserError(f"--interpolate takes 2 steps or more, but was given {steps}.")
    opened = open_for_draws(run, settings=settings, device=device, threads=threads)
    classes = chosen_labels(opened, labels)
    process = score_process(opened)
    # Refused before the data are read.
    between: Callable[..., Tensor]
    if process is None:
        between = partial(interpolate, _flow(opened, "--interpolate"))
    else:
        between = partial(_score_ways, process, _probability_flow(opened, process, asked=bool(settings)))
    data = opened.run.load_data(data_root)
    x_0, x_1 = (data.test[index].to(opened.device) for index in _pairs(data, classes, count, seed))
    context = opened.context(labels_in_turn(classes, range(count)))
    generator = torch.Generator(opened.device).manual_seed(seed)
    with one_sentence(opened):
        ways = between(x_0, x_1, steps=steps, context=context, generator=generator).movedim(0, 1)
    check_finite(opened, ways.flatten(0, 1))
    out = out or opened.run.path / "interpolations.npy"
    x = write_stream(out, tuple(ways.shape), iter([ways])).reshape(-1, *opened.model.event_shape)
    picture = write_picture(opened, out, {opened.run.name: x}, title="Between test rows", columns=steps)
    return (out, picture, write_labels(out, rows, classes)) if classes else (out, picture)


def _score_ways(
    process: ReverseProcess,
    sampler: ProbabilityFlow,
    x_0: Tensor,
    x_1: Tensor,
    *,
    steps: int,
    context: Tensor | None,
    generator: Rng,
) -> Tensor:
    """`(steps, count, *event)` of raw data."""
    z_0, z_1 = (process.encode(x, generator=generator) for x in (x_0, x_1))
    ways = interpolate_scores(sampler, process.score(context), process.inner.sde, z_0, z_1, steps=steps)
    return process.decode(ways.flatten(0, 1)).unflatten(0, (steps, len(x_0)))


def _pairs(data: Dataset, classes: Sequence[int], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Test rows at both ends of each way, two of one class where there are classes."""
    generator = torch.Generator().manual_seed(seed)
    if not classes or data.labels is None:
        first, last = torch.randint(len(data.test), (2, count), generator=generator)
        return first, last
    members = {label: (data.labels.test == label).nonzero()[:, 0] for label in classes}
    lacking = next((label for label, rows in members.items() if not len(rows)), None)
    if lacking is not None:
        raise UserError(f"--label {lacking}: {data.name} has no test row of this class to interpolate between.")
    draws = torch.rand((count, 2), generator=generator)
    chosen = [members[classes[i % len(classes)]] for i in range(count)]
    ends = torch.stack([rows[(u * len(rows)).long()] for rows, u in zip(chosen, draws, strict=True)])
    return ends[:, 0], ends[:, 1]


def _probability_flow(opened: Opened, process: ReverseProcess, *, asked: bool) -> ProbabilityFlow:
    """The model's sampler where it is one, else one of its own, unless another was asked for."""
    sampler = process.inner.sampler
    if isinstance(sampler, ProbabilityFlow):
        return sampler
    if asked:
        raise UserError(
            f"--interpolate needs --set sampler.kind=probability_flow, which has latents, but the sampler of "
            f"{opened.run.name} is a {type(sampler).__name__}."
        )
    return ProbabilityFlow()


def _flow(opened: Opened, option: str) -> LatentModel:
    """The model, where it has latents down to a base in closed form."""
    inner = opened.model
    while isinstance(inner, Flow):
        inner = inner.base
    if not isinstance(opened.model, LatentModel) or not isinstance(inner, Base | LatentModel):
        raise UserError(f"{option} needs a flow, but {opened.run.name} is a {opened.kind}.")
    return opened.model
