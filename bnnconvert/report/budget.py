"""What a budget led to, in words."""

from collections import Counter

from bnnconvert.report.units import as_bytes, as_percent
from bnnconvert.values.budget import Fitted


def budget_notes(fitted: Fitted) -> list[str]:
    """How many layers have which width, and what the mix costs before any training."""
    counts = Counter(fitted.widths.values())
    mix = ", ".join(f"{counts[width]} {width}" for width in ("binary", "4-bit", "int8", "float") if counts[width])
    accuracy, teacher = as_percent(fitted.cost.accuracy), as_percent(fitted.teacher_accuracy)
    cost = f"{accuracy} on training images before any training, the float model {teacher}"
    return [f"Budget: {mix}; {as_bytes(fitted.bytes)} of tensors; {cost}."]
