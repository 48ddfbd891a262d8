"""The limits of the service, and the count of the images and bytes that it holds."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The limits of what the service accepts.

    Attributes:
        queue: Largest number of images in the service at once. A request that is being received counts as one image.
        deadline: Seconds from a request's first byte after which the request is aborted.
        request_bytes: Largest body of a request, in bytes.
        held_bytes: Largest sum of the bodies that the service holds at once, in bytes.
    """

    queue: int = 64
    deadline: float = 30.0
    request_bytes: int = 2**25
    held_bytes: int = 2**28


class Overloaded(Exception):
    """The service has no room for a request, or no time."""


class Room:
    """Counts the images and bytes that the service holds, and refuses what would exceed its limits."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.images = 0
        self.bytes = 0

    @contextmanager
    def hold(self, images: int, size: int) -> Iterator[None]:
        """Counts images and bytes in, and out at the end of the block.

        Raises:
            Overloaded: There is no room for them.
        """
        self.take(images, size)
        try:
            yield
        finally:
            self.give_back(images, size)

    def take(self, images: int, size: int) -> None:
        """Counts images and bytes in.

        Raises:
            Overloaded: There is no room for them.
        """
        has_room = self.images + images <= self._limits.queue
        # A body of the largest size is accepted by an empty service, whatever the sum.
        if not has_room or (self.bytes and self.bytes + size > self._limits.held_bytes):
            raise Overloaded
        self.images += images
        self.bytes += size

    def give_back(self, images: int, size: int) -> None:
        """Counts images and bytes out."""
        self.images -= images
        self.bytes -= size


class Budget:
    """An amount that tasks share. Tasks wait for their part in the order in which they ask.

    A part larger than the whole budget waits until all of it is free.

    Example:
        >>> async def work() -> list[str]:
        ...     log, budget = [], Budget(10)
        ...     async def use(name: str, amount: int) -> None:
        ...         async with budget.hold(amount):
        ...             log.append(f"{name} begins")
        ...             await asyncio.sleep(0)
        ...             log.append(f"{name} ends")
        ...     await asyncio.gather(use("a", 6), use("b", 99), use("c", 1))
        ...     return log
        >>> asyncio.run(work())
        ['a begins', 'a ends', 'b begins', 'b ends', 'c begins', 'c ends']
    """

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def hold(self, amount: int) -> AsyncIterator[None]:
        """Waits until the amount is free, and holds it until the end of the block."""
        amount = min(amount, self._total)
        async with self._turn:
            while self._free < amount:
                self._freed.clear()
                await self._freed.wait()
            self._free -= amount
        try:
            yield
        finally:
            self._free += amount
            self._freed.set()
