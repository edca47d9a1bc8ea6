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
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_user_code(frame.filename)]
    if not frames:
        return reason
    return f"{place_of(frames[-1])}: {reason}"


def place_of(frame: traceback.FrameSummary) -> str:
    """File, line and expression."""
    return f"{frame.filename}:{frame.lineno}, in `{frame.line}`"


def is_user_code(filename: str) -> bool:
    """Whether a file is neither torch's nor ours."""
    return not filename.startswith("<") and not any(Path(filename).is_relative_to(p) for p in (_OURS, _TORCH))
