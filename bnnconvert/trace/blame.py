"""Whose line is to blame: the user's file, line and expression behind a foreign error."""

import traceback
from pathlib import Path

import torch

from bnnconvert.errors import first_line

_OURS = Path(__file__).resolve().parents[1]
_TORCH = Path(torch.__file__).resolve().parent


def blame(error: BaseException) -> str:
    """User's file, line and expression at which tracing failed, and the reason."""
    reason = first_line(error).rstrip(".")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_user_code(frame.filename)]
    if not frames:
        return reason
    where = frames[-1]
    return f"{where.filename}:{where.lineno}, in `{where.line}`: {reason}"


def _is_user_code(filename: str) -> bool:
    return not filename.startswith("<") and not any(Path(filename).is_relative_to(p) for p in (_OURS, _TORCH))
