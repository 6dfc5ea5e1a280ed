"""Shapes in signatures are checked while tests run, in the first calls of each test."""

import jaxtyping
import pytest
import torch

from core.kernel_density import log_mean_kernel

Z, CENTRES = torch.zeros(2, 3), torch.zeros(5, 4)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="centres"):
        log_mean_kernel(Z, CENTRES)


def test_the_last_checked_call_is_checked_and_the_next_is_not() -> None:
    jaxtyping.config.calls = type(jaxtyping.config).checked - 1
    with pytest.raises(jaxtyping.TypeCheckError):
        log_mean_kernel(Z, CENTRES)
    with pytest.raises(RuntimeError):
        log_mean_kernel(Z, CENTRES)


@pytest.mark.usefixtures("unannotated")
def test_users_meet_no_checks_of_annotations() -> None:
    with pytest.raises(RuntimeError):
        log_mean_kernel(Z, CENTRES)
