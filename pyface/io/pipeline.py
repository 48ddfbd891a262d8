"""Overlapping work: results in order, from threads that run ahead by a bounded amount."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from pyface.resources import own_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

_readers: ThreadPoolExecutor


def _make_readers() -> None:
    global _readers
    _readers = ThreadPoolExecutor(min(8, own_cores()), thread_name_prefix="pyface-read")


_make_readers()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_make_readers)  # a forked process has none of its parent's threads


def readers() -> Executor:
    """The threads of this process that read and decode images, for all detectors; they start with the first image.

    They are kept, since OpenCV 5.0 leaks about 900 bytes for every thread that has used it and ends.
    """
    return _readers


def ordered_map(
    pool: Executor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    ahead: float,
    weight: Callable[[Item], float] = lambda _: 1,
    eager: bool = False,
) -> Generator[Result, None, None]:
    """Applies a function to items in a pool, yields the results in order, and holds few of them at once.

    Stages may be chained on one pool: a task never waits for another task, only the caller's thread waits.

    Args:
        pool: Where the function runs.
        function: What to do with an item; its exceptions reach the caller at the item's turn.
        items: Taken one by one as there is room.
        ahead: Bound on the summed weight of the items in progress; a heavier item goes alone.
        weight: What an item costs, for example its memory.
        eager: Yield a finished result at once, for stages whose results are needed early. Otherwise first fill the
            room ahead, for stages that should be busy while the caller works on a result.

    Yields:
        The results, in the order of the items. An error of the items themselves is raised after the results of those
        that came before it.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> with ThreadPoolExecutor(2) as pool:
        ...     list(ordered_map(pool, abs, [3, -2, -1], ahead=2))
        [3, 2, 1]
    """
    under_way: deque[tuple[Future[Result], float]] = deque()
    load = 0.0
    errors: list[Exception] = []
    try:
        for item in hold_error(items, errors):
            cost = weight(item)
            while under_way and (load + cost > ahead or (eager and under_way[0][0].done())):
                future, freed = under_way.popleft()
                load -= freed
                yield future.result()
            under_way.append((pool.submit(function, item), cost))
            load += cost
        while under_way:
            yield under_way.popleft()[0].result()
    finally:
        wait([future for future, _ in under_way if not future.cancel()])  # running ones may still use the items
    if errors:
        raise errors[0]


def hold_error(items: Iterable[Item], errors: list[Exception]) -> Iterator[Item]:
    """Yields items up to an error, which is added to a list, so that work on earlier items can be finished.

    Example:
        >>> errors = []
        >>> list(hold_error((1 // k for k in (1, 0)), errors)), errors
        ([1], [ZeroDivisionError('integer division or modulo by zero')])
    """
    try:
        yield from items
    except Exception as error:
        errors.append(error)
