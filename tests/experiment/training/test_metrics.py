"""Metrics, a line at a time."""

import pytest

from experiment.errors import UserError
from experiment.training.metrics import MetricsLog


def test_a_full_disk_is_one_sentence_and_stays_one_as_the_file_is_closed(tmp_path):
    """What could not be written is tried again as the file is closed, which is not to hide the sentence."""

    def log_on_a_full_disk():
        with MetricsLog(tmp_path / "metrics.jsonl", after=0, tensorboard=False) as log:
            log._file.close()
            log._file = open("/dev/full", "a", encoding="utf-8", buffering=1)  # noqa: SIM115
            log.write(1, {"loss": 1.0})

    with pytest.raises(UserError, match=r"^/dev/full cannot be written: No space left on device\.$"):
        log_on_a_full_disk()
