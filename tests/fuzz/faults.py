"""What every target raises when pyface is wrong without an exception of its own."""


class Fault(AssertionError):
    """A silent error: a wrong result instead of an exception."""


def expect(holds: bool, message: str) -> None:
    if not holds:
        raise Fault(message)
