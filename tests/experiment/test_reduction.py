"""The model of a reduction's time, and where it says that processes stop paying."""

import pytest

from benchmarks.reduction import even, line, reduction


def test_two_processes_take_what_the_line_says():
    assert reduction(2, 1000, 1e-4, 1e-9) == pytest.approx(1e-4 + 1000 * 1e-9)
    assert line({n: reduction(2, n, 1e-4, 1e-9) for n in (0, 10, 10**6)}) == pytest.approx((1e-4, 1e-9))


def test_of_many_processes_each_value_travels_twice_and_each_message_waits():
    assert reduction(10**6, 10**9, 0.0, 1e-9) == pytest.approx(2.0, rel=1e-5)
    assert reduction(11, 0, 1e-4, 1e-9) == pytest.approx(1e-3)
    assert reduction(1, 10**9, 1e-4, 1e-9) == 0


@pytest.mark.parametrize(("step", "parameters"), [(1e-2, 10**4), (0.3, 10**7), (1e-4, 10**7), (5.0, 10**8)])
def test_one_process_more_than_even_reduces_for_longer_than_a_step(step, parameters):
    found = even(step, parameters, 1e-4, 1e-9)
    assert reduction(found, parameters, 1e-4, 1e-9) <= step < reduction(found + 1, parameters, 1e-4, 1e-9)
