"""The commands, in the order in which people need them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pyface.cli import about, benchmark, evaluate, export, serve, train
from pyface.cli.console import MISTAKE, describe_mistake, print_status
from pyface.cli.detect import detect

COMMANDS = (
    "detect",
    "models",
    "evaluate",
    "train",
    "benchmark",
    "serve",
    "export",
    "convert",
    "convert-data",
    "info",
)


class Commands(TyperGroup):
    """The commands in the order of `COMMANDS`; a mistake in one is reported in one sentence, like all others."""

    def main(self, args: Sequence[str] | None = None, *others: Any, **extra: Any) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        if "" in words:  # as a path, it would stand for the current folder
            print_status(f"pyface: argument {words.index('') + 1} is empty; give a value, or leave it out")
            sys.exit(MISTAKE)
        try:
            status = super().main(words, *others, **extra | {"standalone_mode": False})
        except Exception as error:
            if not hasattr(error, "format_message"):  # what typer's exceptions for mistakes have in common
                raise
            text = describe_mistake(error)
            if text:  # else the help has been printed, since no command was given
                print_status(f"pyface: {text}")
            status = MISTAKE
        sys.exit(status)

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=COMMANDS.index)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(detect)
app.command()(serve.serve)
app.command()(about.models)
app.add_typer(evaluate.app, name="evaluate")
app.command()(train.train)
app.command()(benchmark.benchmark)
app.command()(export.export)
app.command()(about.convert)
app.command()(about.convert_data)
app.command()(about.info)


def show_version(wanted: bool) -> None:
    """Handles `--version`."""
    if wanted:
        from pyface import __version__

        typer.echo(f"pyface {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Finds faces in images, videos and camera streams.

    Examples:

    ```
    pyface detect photos/ --save out/           # copies with the faces drawn
    pyface detect photos/ --output faces.jsonl  # one JSON line per image
    pyface models                               # which detector to choose
    ```
    """
    # OpenMP's threads spin while they wait for work. If the machine has other things to do, such as reading and saving
    # images, a run takes up to ten times as long. torch's OpenMP reads this when it is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
