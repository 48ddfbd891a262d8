"""`pyface detect`: faces of any number of images and videos, as lines of results and drawn copies.

`command` checks the request and runs it: `plan` finds the sources, `run` makes the results, `copies` saves copies and
crops, `outputs` writes the results, and `report` shows the progress. `cluster` does the same on many machines.
"""

from pyface.cli.detect.command import detect

__all__ = ["detect"]
