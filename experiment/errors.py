from typing import final


@final
class UserError(ValueError):
    """A mistake in what the user gave: a config, a data file, a run folder.

    The message is one sentence that names the culprit, what was found and what would be right; the scripts show it
    without a traceback and exit with a non-zero status.
    """


@final
class NumericalError(RuntimeError):
    """A loss, gradient or likelihood that is not finite; the message names the step or the row."""
