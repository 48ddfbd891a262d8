"""Pictures of precision-recall curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pyface.evaluation.curves import Curve


def plot_curves(path: Path, curves: Mapping[str, Curve]) -> None:
    """Draws curves into one picture, with their average precision in the legend.

    Args:
        path: The file; its suffix says which kind (.png, .svg, .pdf).
        curves: By name.

    Raises:
        ImportError: matplotlib is not installed.
        OSError, ValueError: The file cannot be written, or its suffix is unknown.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(curve.recall, curve.precision, label=f"{name}: AP {curve.average_precision:.3f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.005), ylim=(0, 1.005))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=150)
