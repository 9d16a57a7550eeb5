"""Back-off: pauses double up to the longest, and jitter only ever lengthens them."""

from __future__ import annotations

from itertools import islice

import pytest
from darkroom.backoff import Backoff, jittered

BACKOFF = Backoff(first_s=0.5, longest_s=3.0)


def test_pauses_double_until_the_longest() -> None:
    assert [BACKOFF.after(failures) for failures in range(1, 6)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert list(islice(BACKOFF.pauses(), 5)) == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_many_failures_do_not_overflow() -> None:
    assert BACKOFF.after(1_000_000) == 3.0


@pytest.mark.parametrize(("given", "held"), [(-1.0, 0.5), (0.1, 0.5), (2.0, 2.0), (1e9, 3.0)])
def test_a_given_pause_is_held_between_the_first_and_the_longest(given: float, held: float) -> None:
    assert BACKOFF.within(given) == held


def test_jitter_lengthens_a_pause_by_at_most_its_share() -> None:
    backoff = Backoff(first_s=1.0, longest_s=60.0, jitter=0.25)
    assert backoff.after(1, dice=0.0) == 1.0
    assert backoff.after(7, dice=1.0) == 75.0
    assert all(2.0 <= backoff.after(2) <= 2.5 for _ in range(100))
    assert jittered(10.0, share=0.2, dice=0.5) == 11.0
