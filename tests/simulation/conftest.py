"""Fixtures of tests in virtual time."""

from collections.abc import Iterator

import pytest
from sim_bench import Bench, new_bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A store and a GitHub in virtual time, for processes that a test makes."""
    with new_bench() as found:
        yield found
