"""Run packed artifacts. Importing this does not import torch."""

from bnnconvert.runtime.session import Session

__all__ = ["Session"]
