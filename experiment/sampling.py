import io
from pathlib import Path

import numpy as np
import torch

from experiment.device import resolve_device
from experiment.errors import NumericalError, UserError
from experiment.files import write_atomic
from experiment.plots import png, sample_figure
from experiment.run import load_run, open_run
from experiment.threads import set_threads


def draw_samples(
    run: str | Path, *, count: int, seed: int = 0, out: Path | None = None, device: str = "cpu", threads: int = 0
) -> tuple[Path, Path]:
    """Draws from a trained run.

    Args:
        run: the run folder.
        count: number of samples, 1 or more.
        seed: of the draws.
        out: the `.npy` file; `samples.npy` in the run folder where omitted. The picture lies beside it.
        device: where to compute.
        threads: CPU threads, 0 to choose by the size of the model.

    Returns:
        The file of the samples `(count, *event)` and the picture.

    Raises:
        UserError: no run, a damaged checkpoint, a count below 1, a seed out of range, or a file that is no .npy.
        NumericalError: a sample that is not finite.
    """
    if count < 1:
        raise UserError(f"--count must be 1 or more, but is {count}.")
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed must lie within 0 and 2**63 - 1, but is {seed}.")
    if out is not None and out.suffix != ".npy":
        raise UserError(f"--out must end in .npy, beside which the picture goes, but is {out}.")
    place = resolve_device(device)
    folder = open_run(run)
    model = load_run(folder.path, device=place)
    set_threads(threads, model)
    x = model.sample((count,), generator=torch.Generator(place).manual_seed(seed))
    bad = (~x.flatten(1).isfinite().all(1)).nonzero()
    if len(bad):
        raise NumericalError(f"{folder.name}: sample {bad[0].item()} is not finite.")
    values = x.cpu().numpy()
    out = out or folder.path / "samples.npy"
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    write_atomic(out, buffer.getvalue())
    shape = folder.environment["image_shape"]
    figure = sample_figure(
        {folder.name: values.astype(np.float64)}, image_shape=None if shape is None else tuple(shape), title="Samples"
    )
    write_atomic(out.with_suffix(".png"), png(figure))
    return out, out.with_suffix(".png")
