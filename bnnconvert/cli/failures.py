"""What a user sees when something goes wrong: one sentence and an exit code; a traceback only with `--debug`."""

import os
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from bnnconvert.errors import BnnError, brief

INTERRUPTED = 130
BROKEN_PIPE = 1


class DebugAnywhere(TyperGroup):
    """Commands whose `--debug` may stand behind the command's name, too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse with `--debug` moved to the front, where the program's own options are looked for."""
        ours = args[: args.index("--")] if "--" in args else args
        if "--debug" in ours:
            args = ["--debug", *(a for a in ours if a != "--debug"), *args[len(ours) :]]
        return super().parse_args(ctx, args)


class Command(TyperCommand):
    """A command that explains its failures."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; whatever it raises becomes one sentence and an exit code."""
        try:
            super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt:
            raise _stop("Stopped.", INTERRUPTED, ctx, advice=self.name) from None
        except BrokenPipeError:
            # Whoever read the output has seen enough. Python would complain at exit if it could not write the rest.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE) from None
        except BnnError as error:
            raise _stop(str(error), error.exit_code, ctx) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:  # the last place where anything can be told to the user in a sentence
            unforeseen = f"Unforeseen {brief(error)}; please report it with what --debug shows."
            raise _stop(unforeseen, BnnError.exit_code, ctx) from None


def _stop(sentence: str, code: int, ctx: Any, *, advice: str | None = None) -> typer.Exit:
    """The exit to raise, after the sentence is on standard error."""
    from bnnconvert.cli import render

    if ctx.find_root().params.get("debug"):
        traceback.print_exc()
    if advice == "finetune":
        sentence += " `bnnconvert finetune --resume` goes on from the last checkpoint."
    render.failure(sentence)
    return typer.Exit(code)
