"""What the commands print and write: failures, counts, progress, outputs that are checked beforehand."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import typer

MISTAKE, FAILED, INTERRUPTED, PIPE_CLOSED = 2, 1, 130, 141
"""Exit statuses."""


def fail(message: object, status: int = MISTAKE) -> NoReturn:
    """Ends the command with one sentence on standard error."""
    print_status(f"pyface: {message}")
    raise typer.Exit(status)


def describe_mistake(error: Any) -> str:
    """Returns in one sentence what typer found wrong with a command line; "" if it has printed the help instead.

    Args:
        error: An exception of typer, such as that for an option's value.
    """
    name = getattr(error, "param", None) and error.param.get_error_hint().strip("'")
    if name and hasattr(error.__cause__, "errors"):  # pydantic's
        return f"{name} must be {_accepted(error.param, error.message)}, got {error.__cause__.errors()[0]['input']}"
    text = _with_guesses(error).rstrip(".")
    command = "pyface" if error.ctx is None else error.ctx.command_path
    return text and f"{text[0].lower()}{text[1:]}; {command} --help shows what it takes"


def _with_guesses(error: Any) -> str:
    """Returns the text of an error, followed in brackets by the options or commands that were probably meant."""
    guesses = getattr(error, "possibilities", None)  # the best first, which typer's own text would sort by name
    if guesses:
        *others, last = guesses
        return f"{error.message} (did you mean {', '.join(others)}{' or ' if others else ''}{last}?)"
    return re.sub(r"\. Did you mean (.+)\?$", r" (did you mean \1?)", error.format_message())


def _accepted(option: Any, message: str) -> str:
    """Returns which values an option accepts, when pydantic has refused one with this message."""
    choices = re.search(r"is not one of (.+?)\.?$", message)
    if choices is not None:
        return f"one of {choices[1].replace(chr(39), '')}"
    low, high = getattr(option, "min", None), getattr(option, "max", None)
    if low is None or high is None:
        limits = f"{low:g} or more" if low is not None else f"{high:g} or less" if high is not None else ""
    else:
        limits = f"from {low:g} to {high:g}"
    kind = "an integer" if "valid integer" in message else "a number" if "valid number" in message else ""
    return ", ".join(filter(None, [kind, limits])) or message.removeprefix("Input should be ")


def print_status(text: str) -> None:
    """Prints a line about the run to standard error, which keeps results in a pipe clean."""
    typer.echo(text, err=True)


def count(number: int, noun: str) -> str:
    """Returns a number with its noun.

    Example:
        >>> count(1, "face"), count(1200, "face")
        ('1 face', '1,200 faces')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def print_names(names: Sequence[str], what: str) -> None:
    """Prints how many images something applies to, and the names of the first ten."""
    if names:
        more = f", and {len(names) - 10:,} more" if len(names) > 10 else ""
        print_status(f"{count(len(names), 'image')} {what}: {', '.join(names[:10])}{more}")


def print_hint(source: Path, rate: float, images: Iterable[tuple[Any, Any]], expected: str = "x y w h score") -> None:
    """Prints what the rows of predictions look like if that explains a rate near 0; see `explain_low`."""
    from pyface.evaluation.hints import LOW, explain_low

    hint = explain_low(images, expected) if rate < LOW else None
    if hint is not None:
        print_status(f"almost nothing matches: the rows of {source} {hint}")


def table_width(width: int) -> int | None:
    """Returns the width of a table if there is no terminal to decide it, None if there is one.

    A pipe has no width, and rich would fold the table to 80 columns, which is hard to read and to search.
    """
    return None if sys.stdout and sys.stdout.isatty() else width


def show_progress(items: Iterable[Any], length: int, label: str = "Detecting") -> Iterator[Any]:
    """Passes items on, with a progress bar on a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    with typer.progressbar(items, length=length, label=label, file=sys.stderr) as shown:
        yield from shown


def check_writable(path: Path) -> None:
    """Fails if a file cannot be written, before the work for it begins."""
    if path.is_dir() or not path.parent.is_dir():
        fail(f"{path} cannot be written: {'it is a folder' if path.is_dir() else f'there is no {path.parent}'}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        fail(f"{path} cannot be written: permission denied")


def check_outputs(json_file: Path | None, plot: Path | None = None, folder: Path | None = None) -> None:
    """Fails, before a long run, if its results could not be written; makes the folder."""
    for path in (json_file, plot):
        if path is not None:
            check_writable(path)
    try:
        if plot is not None:
            from pyface.evaluation.plot import check_plot

            check_plot(plot)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"{folder} cannot be created: {error.strerror}")
    except (ImportError, ValueError) as error:
        fail(error)


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Writes a file of figures, if one was asked for."""
    if path is None:
        return
    try:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}", FAILED)


def write_plot(path: Path, kind: Literal["plot_curves", "plot_roc"], curves: Any) -> None:
    """Plots curves with a function of `pyface.evaluation.plot`."""
    from pyface.evaluation import plot

    try:
        getattr(plot, kind)(path, curves)
    except (ImportError, OSError, ValueError) as error:
        fail(error, FAILED)
