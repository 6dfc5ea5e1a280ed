"""What the four scripts share: common options, and mistakes shown as one sentence with an exit status."""

import argparse
import inspect
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.errors import NumericalError, UserError

if TYPE_CHECKING:
    from experiment.distributed.ranks import Ranks

MOST_LISTED = 1_000_000  # seeds or labels that are no single range
MODES = {"part": "--inpaint", "steps": "--interpolate"}
SCORED, UNSCORED = ("rate", "rows"), ("score", "solver_share", "audit_rows")  # with --anomalies, and not with it
OWN_SCORE = {
    "config": "the config file of which data and preprocessing are taken",
    "out": "the folder of the results",
    **dict.fromkeys(("prediction", "sde", "t_min", "method", "rtol", "atol", "steps", "probes"), ""),
}


def parser(description: str, *, example: str) -> argparse.ArgumentParser:
    """A parser with the options that every script takes."""
    made = argparse.ArgumentParser(
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--device", default="auto", help="cpu, cuda or auto (a GPU where there is one); default auto")
    made.add_argument("--threads", type=int, default=0, help="CPU threads; default by the size of the model")
    return made


def sampling_parser() -> argparse.ArgumentParser:
    """The parser of sample.py: what is not given is None, so that the functions' own defaults stand."""
    p = parser(
        "Draw samples, fill in parts of test rows, or go between test rows through the latent space: an .npy file, and "
        "a picture beside it.",
        example="sample.py runs/digits/real_nvp --count 64",
    )
    p.add_argument("run", type=Path, metavar="RUN", help="run folder made by train.py")
    p.add_argument("--count", type=int, help="number of samples or of ways; default 64")
    p.add_argument("--seed", type=int, help="seed of the draws; default 0")
    p.add_argument("--seeds", metavar="LIST", help="a seed a sample, which then depends on no other: 5,6,7 or 0-63")
    p.add_argument("--chunk", type=int, metavar="N", help="samples at a time, for any number in bounded memory")
    p.add_argument("--label", dest="labels", metavar="LIST", help="classes in turn, of a run with labels; default all")
    p.add_argument("--guidance", type=float, metavar="W", help="weight of the labels, 1 as learned; score_sde alone")
    p.add_argument("--temperature", type=float, help="factor on a flow's latent draws; default 1")
    p.add_argument(
        "--set",
        dest="settings",
        action="append",
        metavar="KEY=VALUE",
        help="sampler.kind=..., sampler.steps=...; repeatable",
    )
    p.add_argument(
        "--inpaint",
        dest="part",
        metavar="PART",
        help="draw left, right, top, bottom, box or a .npy mask of test rows anew",
    )
    p.add_argument("--resample", type=int, metavar="U", help="times that each step of --inpaint is taken; default 1")
    p.add_argument(
        "--interpolate",
        dest="steps",
        type=int,
        metavar="STEPS",
        help="ways of so many steps between pairs of test rows",
    )
    p.add_argument(
        "--animate", type=Path, metavar="FILE", help="a .gif or .mp4 of how noise becomes samples; score_sde alone"
    )
    p.add_argument("--data-root", type=Path, help="folder of the data files; default where the run was trained")
    p.add_argument("--out", type=Path, help="the .npy file; default samples, inpainted or interpolations.npy in RUN")
    return p


def evaluation_parser() -> argparse.ArgumentParser:
    """The parser of evaluate.py: what is not given is None, so that the functions' own defaults stand."""
    p = parser(
        "Measure the likelihood of trained runs on their test split, or of a score network of your own, with its error "
        "budget and checks.",
        example="evaluate.py runs/digits/real_nvp --draws 20\n"
        "  evaluate.py runs/table/nsf --anomalies new_rows.csv\n"
        "  evaluate.py --score my_score:build --prediction noise --config configs/digits/vp_sde.toml --out runs/mine",
    )
    p.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="run folder made by train.py")
    p.add_argument("--draws", type=int, help="dequantization draws a row; default the config's")
    p.add_argument(
        "--solver-share",
        type=float,
        metavar="SHARE",
        help="choose tolerances or steps so that the solver's error is below this share of the standard error",
    )
    p.add_argument("--audit-rows", type=int, metavar="N", help="rows whose likelihood is found another way; default 4")
    p.add_argument("--data-root", type=Path, help="folder of the data files; default where the run was trained")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    strange = p.add_argument_group("how unlikely other rows are, row by row")
    strange.add_argument(
        "--anomalies",
        dest="data",
        type=Path,
        metavar="DATA",
        help="score DATA instead: a table, .npy or folder of images, or a config file, of whose data the test split",
    )
    strange.add_argument("--rate", type=float, help="level of p-values and false discovery rate; default 0.05")
    strange.add_argument("--rows", type=int, metavar="N", help="at most N rows of each set; default all")
    strange.add_argument(
        "--classify", action="store_true", help="name classes by Bayes' rule instead, of runs with labels"
    )
    own = p.add_argument_group("a score network of your own")
    own.add_argument("--score", metavar="MODULE:FACTORY", help="factory() returns the network, called as net(x, t)")
    own.add_argument("--config", type=Path, help="config file of which data and preprocessing are taken")
    own.add_argument("--out", type=Path, help="folder of the results")
    own.add_argument("--prediction", help="what it gives: score (default), noise, data or velocity")
    own.add_argument("--sde", help="its noising process: vp (default), cosine_vp, sub_vp or ve")
    own.add_argument("--t-min", type=float, help="time at which the density is taken; default 1e-5")
    own.add_argument("--method", help="ODE method; default dopri5")
    own.add_argument("--rtol", type=float, help="relative tolerance; default 1e-5")
    own.add_argument("--atol", type=float, help="absolute tolerance; default 1e-5")
    own.add_argument("--steps", type=int, help="steps of a fixed method; default 100")
    own.add_argument("--probes", type=int, help="trace probes, 0 for the exact trace; default exact below 8 values")
    return p


def evaluation_options(asked: argparse.Namespace) -> dict[str, Any]:
    """The options that were given to evaluate.py, as keywords of what measures.

    That is `evaluate`, `anomalies` where --anomalies was given, or `evaluate_score` where --score was.

    Raises:
        UserError: neither runs nor --score, both, or an option that does not go with them.
    """
    modes = ("runs", "quiet", "classify")
    given = {name: value for name, value in vars(asked).items() if value is not None and name not in modes}
    given["progress_bar"] = not asked.quiet
    if bool(asked.runs) == (asked.score is not None):
        found = "both" if asked.runs else "neither"
        raise UserError(f"evaluate.py takes run folders, or --score MODULE:FACTORY, but was given {found}.")
    if asked.score is not None:
        missing = next((name for name in ("config", "out") if name not in given), None)
        if missing is not None:
            raise UserError(f"--score needs --{missing} as well: {OWN_SCORE[missing]}.")
    else:
        alien = next((name for name in given if name in OWN_SCORE), None)
        if alien is not None:
            raise UserError(
                f"--{alien.replace('_', '-')} goes with --score, not with runs, which have settings of their own."
            )
    _check_mode(given, classify=asked.classify)
    return given


def _check_mode(given: dict[str, Any], *, classify: bool) -> None:
    """Refuses options of another mode than the one asked for."""
    if "data" not in given:
        alien = next((name for name in SCORED if name in given), None)
        if alien is not None:
            raise UserError(f"{_flag(alien)} goes with --anomalies.")
    for mode, asked, others in (
        ("--anomalies", "data" in given, UNSCORED),
        ("--classify", classify, ("data", *UNSCORED)),
    ):
        alien = next((name for name in others if name in given), None)
        if asked and alien is not None:
            raise UserError(f"{_flag(alien)} does not go with {mode}.")


def given_options(asked: argparse.Namespace, draw: Callable[..., Any], ranks: "Ranks | None" = None) -> dict[str, Any]:
    """The options that were given to sample.py, as keywords of what draws, and the processes where it takes several.

    Raises:
        UserError: an option or processes that `draw` does not take, or a list that is none.
    """
    given = {name: value for name, value in vars(asked).items() if value is not None}
    taken = inspect.signature(draw).parameters
    if ranks is not None and "ranks" in taken:
        given["ranks"] = ranks
    elif ranks is not None and ranks.world > 1:
        raise UserError(f"torchrun started {ranks.world} processes, but only draws of whole samples are shared.")
    if "data_root" not in taken:  # harmless where no data are read
        given.pop("data_root", None)
    for name in given:
        if name not in taken:
            mode = next((flag for key, flag in MODES.items() if key in taken), "draws of whole samples")
            raise UserError(f"{_flag(name)} does not go with {mode}.")
    for name in {"seeds", "labels"} & given.keys():
        given[name] = whole_numbers(given[name], option=_flag(name))
    return {"count": len(given.get("seeds", range(64))), **given}


def _flag(name: str) -> str:
    return (
        MODES.get(name)
        or {"labels": "--label", "settings": "--set", "data": "--anomalies"}.get(name)
        or f"--{name.replace('_', '-')}"
    )


def whole_numbers(text: str, *, option: str) -> Sequence[int]:
    """Numbers and ranges, both ends included, from a list such as `5,6,10-12`; a range alone takes no memory.

    Raises:
        UserError: anything else.

    Example:
        >>> list(whole_numbers("5,6,10-12", option="--seeds"))
        [5, 6, 10, 11, 12]
    """
    ranges: list[range] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) < int(first):
            raise UserError(f"{option} takes whole numbers such as 5,6,7 or 0-63, but was given {text!r}.")
        ranges.append(range(int(first), int(last or first) + 1))
    highest = max(numbers.stop for numbers in ranges)
    if highest > 2**63 or (len(ranges) > 1 and sum(map(len, ranges)) > MOST_LISTED):
        raise UserError(f"{option} takes numbers below 2**63, at most {MOST_LISTED} in a list, but was given {text!r}.")
    return ranges[0] if len(ranges) == 1 else tuple(itertools.chain(*ranges))


def run(main: Callable[[], None]) -> int:
    """Runs a script's main: 0, or 1 with one sentence on standard error for a mistake, 130 when interrupted."""
    try:
        main()
    except (UserError, NumericalError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None:  # no file of the user's, such as a library that cannot be loaded
            raise
        print(f"error: {error.filename}: {error.strerror}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; files on disk are whole, and train.py goes on with --resume.", file=sys.stderr)
        return 130
    return 0
