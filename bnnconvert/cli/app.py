"""The table of commands and the program around it. Nothing here imports torch, so that `--help` answers at once."""

from collections.abc import Callable
from typing import Annotated

import typer

from bnnconvert import __version__
from bnnconvert.cli.bench import bench
from bnnconvert.cli.compare import compare
from bnnconvert.cli.convert import convert
from bnnconvert.cli.evaluate import evaluate
from bnnconvert.cli.export import export
from bnnconvert.cli.failures import Command, DebugAnywhere
from bnnconvert.cli.finetune import finetune
from bnnconvert.cli.inspect import inspect
from bnnconvert.cli.recipes import recipes
from bnnconvert.cli.run import run
from bnnconvert.cli.sensitivity import sensitivity
from bnnconvert.cli.verify import verify

COMMANDS: dict[str, Callable[..., None]] = {
    "convert": convert,
    "finetune": finetune,
    "evaluate": evaluate,
    "export": export,
    "run": run,
    "verify": verify,
    "bench": bench,
    "compare": compare,
    "sensitivity": sensitivity,
    "inspect": inspect,
    "recipes": recipes,
}
"""The commands in the order of the help. To add one: one file, one row."""


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"bnnconvert {__version__}")
        raise typer.Exit


def _program(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, too.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Turn a float PyTorch model into a binary neural network.

    bnnconvert convert model.pt --recipe xnor, then bnnconvert finetune --data DIR, then bnnconvert export --packed.
    """


def _build() -> typer.Typer:
    # No markup mode and no pretty exceptions: either would import rich before anything is printed.
    app = typer.Typer(
        cls=DebugAnywhere,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_program)
    for name, command in COMMANDS.items():
        app.command(name, cls=Command)(command)
    return app


app = _build()
