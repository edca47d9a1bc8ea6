"""One page about a network, in one file: style, script and data are in it, and it asks for nothing else."""

import json
from dataclasses import asdict
from pathlib import Path

from bnnconvert.errors import UsageError, first_line
from bnnconvert.values.files import write_text
from bnnconvert.values.page import Page

_HERE = Path(__file__).parent


def write_page(page: Page, path: Path) -> None:
    """Write the page.

    Raises: UsageError where the file cannot be written.
    """
    parts = {name: (_HERE / f"page.{name}").read_text("utf-8") for name in ("html", "css", "js")}
    # Inside a script element only "</" could end it.
    data = json.dumps(asdict(page), separators=(",", ":")).replace("</", "<\\/")
    text = parts["html"].replace("/*style*/", parts["css"]).replace("/*script*/", parts["js"])
    try:
        write_text(path, text.replace("/*data*/", data))
    except OSError as error:
        raise UsageError(f"--html {path}: cannot be written ({first_line(error)}); give another file.") from error
