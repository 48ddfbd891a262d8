"""Leaves out the docstrings' examples of packages whose extra is not installed."""

from importlib.util import find_spec

NEEDS = {"pyface/serve": "fastapi_offline", "pyface/export": "onnxscript", "pyface/distributed": "ray"}
collect_ignore = [folder for folder, package in NEEDS.items() if find_spec(package) is None]
