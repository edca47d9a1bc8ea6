"""The folds, in the order in which they run. To add one: one file, one row."""

from bnnconvert.lower.folds.base import Fold
from bnnconvert.lower.folds.chunk import ChunkFold
from bnnconvert.lower.folds.constants import ConstantFold
from bnnconvert.lower.folds.threshold import ThresholdFold

FOLDS: dict[str, Fold] = {
    "constants": ConstantFold(),
    "chunk": ChunkFold(),
    "threshold": ThresholdFold(),
}
