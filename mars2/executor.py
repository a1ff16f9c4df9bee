"""Where jobs are done: here, one after the other."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_jobs(function: Callable[[T], R], jobs: Iterable[T]) -> Iterator[R]:
    """Yield the function's result for each job, in their order, as soon as it is there."""
    for job in jobs:
        yield function(job)
