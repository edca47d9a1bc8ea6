"""Tasks: one file each, one row each."""

from bnnconvert.tasks.base import Meter, Task
from bnnconvert.tasks.classification import Classification
from bnnconvert.tasks.detection import Detection
from bnnconvert.tasks.multilabel import MultiLabel
from bnnconvert.tasks.regression import Regression
from bnnconvert.tasks.segmentation import Segmentation

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "multi-label": MultiLabel,
    "regression": Regression,
    "segmentation": Segmentation,
    "detection": Detection,
}
CLASSIFICATION: Task = Classification()

__all__ = ["CLASSIFICATION", "TASKS", "Meter", "Task"]
