"""Plots of curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyface.evaluation.curves import Curve

if TYPE_CHECKING:
    from pyface.evaluation.fddb import Roc


def check_plot(path: Path) -> None:
    """Checks, before a long run, that its curves can be plotted afterwards.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: The file's suffix is unknown.
    """
    figure, _ = _figure()
    kinds = figure.canvas.get_supported_filetypes()
    if path.suffix.lower().lstrip(".") not in kinds:
        raise ValueError(f"{path} must end with .png or another of .{', .'.join(sorted(kinds))}, for the plot")


def plot_curves(path: Path, curves: Mapping[str, Curve]) -> None:
    """Plots precision-recall curves, with their average precision in the legend.

    Args:
        path: The file; its suffix decides the format (.png, .svg, .pdf).
        curves: The curves by name.

    Raises:
        ImportError: matplotlib is not installed.
        OSError, ValueError: The file cannot be written, or its suffix is unknown.
    """
    figure, axes = _figure()
    for name, curve in curves.items():
        axes.plot(curve.recall, curve.precision, label=f"{name}: AP {curve.average_precision:.3f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.005), ylim=(0, 1.005))
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=150)


def plot_roc(path: Path, roc: Roc, farthest: int = 2000) -> None:
    """Plots FDDB's discrete and continuous curves up to `farthest` false positives.

    Raises:
        ImportError, OSError, ValueError: As for `plot_curves`.
    """
    figure, axes = _figure()
    rates = roc.at(1000)
    for name, column, rate in zip(("discrete", "continuous"), (roc.discrete, roc.continuous), rates, strict=True):
        axes.plot(roc.false_positives, column, label=f"{name}: {rate:.3f} at 1000")
    axes.set(xlabel="false positives", ylabel="true positive rate", xlim=(0, farthest), ylim=(0, 1.005))
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def _figure() -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes
