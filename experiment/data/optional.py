"""Packages that only some data sets need."""

import importlib
from typing import Any

from experiment.errors import UserError


def optional(package: str, *, purpose: str) -> Any:
    """A package of the extra `tabular`.

    Args:
        package: what to import.
        purpose: what needs it, as the error's first words.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = package.partition(".")[0]
        raise UserError(f"{purpose} needs {name}; install it with: pip install 'cflows[tabular]'.") from error
