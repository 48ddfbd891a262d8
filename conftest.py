"""Leaves out the docstrings' examples of packages whose extra is not installed."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("fastapi_offline") else ["pyface/serve"]
