"""Test rows of which a part is drawn anew given the rest."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cflows.samplers.inpainting import Inpainting
from cflows.samplers.sampler import OneStepSampler
from core.rng import Rng, rand
from experiment.draws.drawing import (
    PICTURED,
    Rows,
    Written,
    check_out,
    chosen_labels,
    labels_in_turn,
    labels_path,
    open_for_draws,
    stream,
    write_picture,
    write_stream,
)
from experiment.draws.masks import hidden_part
from experiment.draws.reverse_process import ReverseProcess
from experiment.draws.score_draws import Motion, score_process
from experiment.errors import UserError
from experiment.files import write_rows


def draw_inpaintings(
    run: str | Path,
    *,
    part: str,
    count: int,
    resample: int = 1,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    chunk: int | None = None,
    labels: Sequence[int] | None = None,
    guidance: float | None = None,
    settings: Sequence[str] = (),
    animate: Path | None = None,
    out: Path | None = None,
    data_root: Path | None = None,
    device: str = "cpu",
    threads: int = 0,
) -> Written:
    """Test rows of which a part is drawn anew given the rest, by a score model under an SDE; see `cflows.Inpainting`.

    Args:
        run: the run folder.
        part: `left`, `right`, `top`, `bottom` or `box` of an image, or a .npy file that is true where to draw anew.
        count: number of test rows, chosen at random.
        resample: how often each step is taken; more for a better fit of the part to the rest.
        seed: of the choice of rows and of the draws.
        seeds: as of `draw_samples`; the choice of a row depends on its seed as well.
        chunk: as of `draw_samples`.
        labels: as of `draw_samples`; the test rows' own where omitted.
        guidance: as of `draw_samples`.
        settings: as of `draw_samples`; the sampler must be one that moves step by step.
        animate: as of `draw_samples`.
        out: the `.npy` file; `inpainted.npy` in the run folder where omitted. The picture lies beside it: the test
            rows, what is left of them, and the draws.
        data_root: folder of the data files, where it moved since training.
        device: where to compute.
        threads: CPU threads, 0 to choose by the size of the model.

    Returns:
        As `draw_samples`.

    Raises:
        UserError: as of `draw_samples`, and a model, sampler or mask that does not fit.
        NumericalError: a row that is not finite; no file is written then.
    """
    rows = Rows(count=count, seed=seed, seeds=seeds, chunk=chunk)
    check_out(out)
    opened = open_for_draws(run, settings=settings, device=device, threads=threads)
    process = score_process(opened, guidance=guidance, option="--inpaint")
    predictor = _predictor(process, resample)
    hidden = hidden_part(part, tuple(opened.model.event_shape), opened.image_shape).to(opened.device)
    motion = None if animate is None else Motion(opened, animate)
    classes = chosen_labels(opened, labels)
    data = opened.run.load_data(data_root)
    test = data.test.to(opened.device)
    originals: list[Tensor] = []
    told: list[Tensor] = []

    def draw(chunk: range, generator: Rng) -> Tensor:
        index = (rand((len(chunk),), generator, like=test) * len(test)).long()
        known = test[index]
        originals.extend([known.cpu()] if chunk.start < PICTURED else [])
        of_chunk = data.labels.test[index.cpu()] if data.labels and labels is None else labels_in_turn(classes, chunk)
        told.extend([] if of_chunk is None else [of_chunk])
        drawn = process.sample(
            len(chunk),
            context=opened.context(of_chunk),
            guidance=guidance,
            sampler=Inpainting(predictor, process.encode(known, generator=generator), ~hidden, resample=resample),
            generator=generator,
            callback=motion.callback(chunk) if motion else None,
        )
        return torch.where(hidden, drawn, known)  # preprocessing and back is known only up to rounding

    out = out or opened.run.path / "inpainted.npy"
    x = write_stream(out, (count, *opened.model.event_shape), stream(opened, rows, draw))
    rest = torch.cat(originals)[: len(x)].double()
    panels = {
        "test rows": rest.numpy(),
        "known": torch.where(hidden.cpu(), rest.mean(), rest).numpy(),
        opened.run.name: x,
    }
    written = [out, write_picture(opened, out, panels, title="Drawn anew in part")]
    if told:
        write_rows(labels_path(out), (count,), (part.numpy() for part in told))
        written.append(labels_path(out))
    if motion:
        written.append(motion.write(process))
    return tuple(written)


def _predictor(process: ReverseProcess, resample: int) -> OneStepSampler:
    sampler = process.inner.sampler
    if not isinstance(sampler, OneStepSampler):
        raise UserError(
            "--inpaint needs a sampler that moves step by step, as --set sampler.kind=ancestral, but has "
            f"{type(sampler).__name__}."
        )
    if resample < 1:
        raise UserError(f"--resample must be 1 or more, but is {resample}.")
    return sampler
