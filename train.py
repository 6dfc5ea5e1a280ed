"""Fits one model described by a config file."""

import sys
from pathlib import Path

from experiment.cli import parser, run


def main() -> None:
    """Parses, trains, says where the run lies."""
    p = parser(
        "Fit one model described by a TOML config file, into a run folder.",
        example="train.py configs/digits/real_nvp.toml --set train.steps=500 --run-dir runs/quick",
    )
    p.add_argument("config", type=Path, help="TOML file such as configs/digits/real_nvp.toml")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting; repeatable")
    p.add_argument("--run-dir", type=Path, help="where the run goes; default runs/<folder of the config>/<its name>")
    p.add_argument("--resume", action="store_true", help="go on from the last checkpoint, or start where there is none")
    p.add_argument("--data-root", type=Path, default=Path("data"), help="folder of the data files; default data")
    p.add_argument("--shard", action="store_true", help="share the model out to the processes of torchrun, a part each")
    p.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events (extra 'tensorboard')")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    a = p.parse_args()
    from experiment import load_config, train  # torch takes seconds, which --help need not
    from experiment.distributed.ranks import joined
    from experiment.run import run_folder

    with joined(device=a.device) as ranks:
        done = train(
            load_config(a.config, a.set),
            a.run_dir or run_folder(a.config),
            data_root=a.data_root,
            resume=a.resume,
            device=a.device,
            threads=a.threads,
            tensorboard=a.tensorboard,
            progress_bar=not a.quiet,
            ranks=ranks,
            shard=a.shard,
        )
        ranks.say(f"trained {done.path}: best weights in {done.best.name}, metrics in {done.metrics.name}")


if __name__ == "__main__":
    sys.exit(run(main))
