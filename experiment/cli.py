"""What the four scripts share: common options, and mistakes shown as one sentence with an exit status."""

import argparse
import sys
from collections.abc import Callable

from experiment.errors import NumericalError, UserError


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


def run(main: Callable[[], None]) -> int:
    """Runs a script's main: 0, or 1 with one sentence on standard error for a mistake, 130 when interrupted."""
    try:
        main()
    except (UserError, NumericalError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; files on disk are whole, and train.py goes on with --resume.", file=sys.stderr)
        return 130
    return 0
