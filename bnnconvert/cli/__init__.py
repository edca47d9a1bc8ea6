"""The command line. One command is one file; `app.py` has the table."""

import gc

_COLLECTIONS = (100_000, 20, 100)
"""New objects before Python looks for cycles, and how often it looks further back."""


def main() -> None:
    """Run the command that was typed; the entry point of the package."""
    # Imports and graphs are many small objects that stay; with 700, Python's own number, a tenth of a conversion's time
    # went into looking through them over and over.
    gc.set_threshold(*_COLLECTIONS)
    from bnnconvert.cli.app import app

    app(prog_name="bnnconvert")
