"""The command line. One command is one file; `app.py` has the table."""


def main() -> None:
    """Run the command that was typed; the entry point of the package."""
    from bnnconvert.cli.app import app

    app(prog_name="bnnconvert")
