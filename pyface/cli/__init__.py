"""The `pyface` command.

In this package modules that are slow to load (torch, OpenCV, rich) are imported inside functions: `pyface --help` and
mistakes on the command line need none of them.
"""

from pyface.cli.app import app

__all__ = ["app"]
