"""The likelihood of a score network of the user's own, without our training."""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import nn

from cflows import SDE, VESDE, VPSDE, CosineVPSDE, ODESolver, PredictedScore, SubVPSDE
from core import DensityModel, ExactDivergence, Hutchinson
from core.divergence import Divergence
from discrete import Flow
from experiment.building.builder import build_preprocessing, load_data
from experiment.building.user_module import Network, made_by, time_shape
from experiment.config import Evaluate, read_toml
from experiment.data import Dataset
from experiment.device import resolve_device
from experiment.distributed.ranks import ALONE, Ranks
from experiment.errors import UserError
from experiment.likelihood.evaluation import AUDIT_ROWS, check_options, measure
from experiment.likelihood.score_density import ScoreDensity
from experiment.likelihood.summary import Subject, Summary
from experiment.messages import describe
from experiment.sections.base import Positive, Section
from experiment.sections.data import Data, NoPreprocessing, Preprocessing
from experiment.threads import set_threads

PROCESSES: dict[str, type[SDE]] = {"vp": VPSDE, "cosine_vp": CosineVPSDE, "sub_vp": SubVPSDE, "ve": VESDE}


class Measured(Section):
    """The part of a config that says what is measured; it has nothing to say of the model."""

    data: Annotated[Data, Field(discriminator="kind")]
    preprocessing: Annotated[Preprocessing, Field(discriminator="kind")] = NoPreprocessing()
    evaluate: Evaluate = Evaluate()


class ScoreSettings(Section):
    """How a network of one's own is read and solved; see `cflows.PredictedScore` and `cflows.ODESolver`.

    Without `probes` the trace is exact below 8 dimensions and has 8 Rademacher probes above; 0 makes it exact.
    """

    prediction: Literal["score", "noise", "data", "velocity"] = "score"
    sde: Literal["vp", "cosine_vp", "sub_vp", "ve"] = "vp"
    t_min: float = Field(1e-5, gt=0, lt=1)
    method: str = "dopri5"
    rtol: Positive = 1e-5
    atol: Positive = 1e-5
    steps: int = Field(100, strict=True, ge=2)
    probes: int | None = Field(None, strict=True, ge=0)


def evaluate_score(
    score: str,
    config: str | Path,
    out: str | Path,
    *,
    prediction: str | None = None,
    sde: str | None = None,
    t_min: float | None = None,
    method: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    steps: int | None = None,
    probes: int | None = None,
    draws: int | None = None,
    solver_share: float | None = None,
    audit_rows: int = AUDIT_ROWS,
    data_root: str | Path = "data",
    device: str = "cpu",
    threads: int = 0,
    progress_bar: bool = False,
    ranks: Ranks = ALONE,
) -> Summary:
    """Measures a network of the user's own on a test split; writes `evaluation.json` and `evaluation.npz` into `out`.

    The network is called as net(x, t), with x as the preprocessing leaves the data and t within [0, 1], 0 the data, of
    shape `(rows,)` or 0-dimensional, whichever it takes; with labels as net(x, t, one_hot).

    Args:
        score: `module:factory`, looked for in the working directory first; factory() returns the network, or the
            network and a dict of the settings below, whose `sde` may be any `cflows.SDE`.
        config: a config file, of which `[data]`, `[preprocessing]` and `[evaluate]` count.
        out: folder of the results, made where it does not exist.
        prediction: what the network gives: score, noise, data or velocity. What is given here overrules the factory.
        sde: the noising process that it was trained with, at its default settings: vp, cosine_vp, sub_vp or ve.
        t_min: time at which the density is taken.
        method: ODE method.
        rtol: relative tolerance of an adaptive method.
        atol: absolute tolerance of an adaptive method.
        steps: steps of a fixed method.
        probes: trace probes a row; 0 for the exact trace.
        draws: dequantization draws a row; the config's where omitted.
        solver_share: as in `evaluate`.
        audit_rows: as in `evaluate`.
        data_root: folder of the data files.
        device: where to compute; a network that is no module must be there already.
        threads: CPU threads, 0 to choose by the size of the network.
        progress_bar: show progress on the terminal.
        ranks: the processes that share the batches, as in `evaluate`; the first one writes.

    Returns:
        The summary.

    Raises:
        UserError: a module, network, setting or config that does not do.
        NumericalError: a likelihood that is not finite; it names the row.
    """
    check_options(draws=draws, solver_share=solver_share, audit_rows=audit_rows)
    place, measured = ranks.place(resolve_device(device)), _measured(Path(config))
    asked = {"prediction": prediction, "sde": sde, "t_min": t_min, "method": method}
    asked |= {"rtol": rtol, "atol": atol, "steps": steps, "probes": probes}
    net, settings = made_by(score)
    dataset = load_data(measured.data, Path(data_root))
    model = _model(net, settings | {k: v for k, v in asked.items() if v is not None}, dataset, place, spec=score)
    preprocessing = build_preprocessing(
        measured.preprocessing, dataset.event_shape, bins=dataset.bins, rows=dataset.train
    )
    whole: DensityModel = model if preprocessing is None else Flow(preprocessing, model)
    whole = whole.to(place).eval()
    set_threads(threads, whole)
    folder = _folder(Path(out))
    parameters = sum(p.numel() for p in model.parameters())
    return measure(
        whole,
        dataset,
        Subject(run=folder.resolve().name, model=score, parameters=parameters),
        folder,
        draws=measured.evaluate.draws if draws is None else draws,
        solver_share=solver_share,
        audit_rows=audit_rows,
        device=place,
        progress_bar=progress_bar,
        ranks=ranks,
    )


def _measured(path: Path) -> Measured:
    table = read_toml(path)
    try:
        measured = Measured.model_validate({key: table[key] for key in Measured.model_fields if key in table})
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error, Measured)}") from error
    if measured.preprocessing.variational is not None:
        raise UserError(f"{path}: preprocessing.variational is trained with a flow, but a score of your own has none.")
    return measured


def _model(net: Network, given: dict[str, Any], dataset: Dataset, place: torch.device, *, spec: str) -> ScoreDensity:
    """The density of the network, in its own precision."""
    process = given.pop("sde") if isinstance(given.get("sde"), SDE) else None
    try:
        settings = ScoreSettings.model_validate(given)
        solver = ODESolver(**{name: getattr(settings, name) for name in ("method", "rtol", "atol", "steps")})
    except ValidationError as error:
        raise UserError(f"--score {spec}: {describe(error, ScoreSettings)}") from error
    except ValueError as error:
        raise UserError(f"--score {spec}: {error}") from error
    module = net.to(place).eval() if isinstance(net, nn.Module) else None
    double = module is not None and any(p.dtype == torch.float64 for p in module.parameters())
    dtype = torch.float64 if double else torch.float32
    rows = next(n for n in range(2, 100) if n not in dataset.event_shape)
    like = torch.randn(rows, *dataset.event_shape, generator=torch.Generator().manual_seed(0)).to(place, dtype)
    context = like.new_zeros(rows, dataset.classes) if dataset.classes else None
    sde = PROCESSES[settings.sde]() if process is None else process
    return ScoreDensity(
        dataset.event_shape,
        score=PredictedScore(
            net=net, sde=sde, prediction=settings.prediction, time=time_shape(net, like, context, spec=spec)
        ),
        sde=sde,
        t_min=settings.t_min,
        divergence=_divergence(settings.probes),
        solver=solver,
        net=module,
    ).to(dtype)


def _divergence(probes: int | None) -> Divergence | None:
    if probes is None:
        return None
    return Hutchinson(probes=probes) if probes else ExactDivergence()


def _folder(path: Path) -> Path:
    if (path / "config.json").exists():
        raise UserError(f"--out {path} is the folder of a trained run, whose evaluation stays; give another one.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {path} cannot be made a folder: {error.strerror or error}.") from error
    return path
