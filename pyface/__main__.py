"""`python -m pyface` is the `pyface` command."""

from pyface.cli import app

app(prog_name="pyface")
