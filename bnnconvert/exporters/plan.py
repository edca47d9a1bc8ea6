"""Target `plan`: the program compiled for the native engine, for hosts in C and C++ without Python or torch."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from bnnconvert.artifact.schema import Artifact, Metadata
from bnnconvert.errors import RefusalError, UsageError, VerificationError
from bnnconvert.exporters.draft import deployed_form, draft_of, module_bytes
from bnnconvert.exporters.verify import TOLERANCE
from bnnconvert.lower.deploy import tensor_bytes
from bnnconvert.runtime import native
from bnnconvert.runtime.segments import parts_of
from bnnconvert.runtime.session import flattened
from bnnconvert.values.files import write_bytes
from bnnconvert.values.report import ExportReport


def export_plan(
    student: GraphModule,
    path: str | Path,
    *,
    golden_input: Tensor,
    metadata: Metadata | None = None,
    teacher: nn.Module | None = None,
) -> ExportReport:
    """Write the plan that `bnn_open` of the C interface takes. It holds no metadata.

    Raises: UsageError where the engine is not installed to prove it, RefusalError for a model of which it would run
    only parts, VerificationError where it computes something else than the student; no file is left then.
    """
    if native.library() is None:
        raise UsageError("export: a plan is proved on the native engine, which this installation lacks; give --packed.")
    deployed, golden_input = deployed_form(student, golden_input)
    draft = draft_of(deployed, golden_input)
    content, shapes = _compiled(draft)
    difference = _prove(content, shapes, student, golden_input, path)
    write_bytes(path, content)
    tensors = sum(array.nbytes for array in draft.tensors.values())
    return ExportReport(
        path=str(path),
        predicted_bytes=tensor_bytes(deployed),
        tensor_bytes=tensors,
        golden_bytes=0,
        header_bytes=len(content) - tensors,
        file_bytes=len(content),
        float_bytes=0 if teacher is None else module_bytes(teacher),
        golden_difference=difference,
        layers=(),
    )


def _compiled(draft: Artifact) -> tuple[bytes, list[tuple[int, ...]]]:
    """The plan, and the shapes of its outputs for one sample."""
    parts, reasons = parts_of(draft.program, draft.tensors)
    if len(parts) > 1 or parts[0].plan is None:
        number, reason = next(iter(reasons.items()), (0, "it has several parts"))
        node = draft.program.nodes[number]
        raise RefusalError(
            f"export: {node.layer or node.op} would run outside the engine ({reason}), and a plan has no outside; "
            "give --packed, or keep the layer out of the model."
        )
    specs = draft.program.specs()
    return parts[0].plan.to_bytes(), [specs[name].sized(1)[1:] for name in parts[0].outputs]


def _prove(
    content: bytes, shapes: list[tuple[int, ...]], student: GraphModule, golden_input: Tensor, path: str | Path
) -> float:
    """Largest difference from the student on the golden input."""
    engine = native.Engine(content, shapes, threads=1, isa=native.chosen_isa())
    with torch.no_grad():
        expected = [y.numpy() for y in flattened(student(golden_input))]
    largest = 0.0
    for actual, wanted in zip(engine.run([golden_input.numpy()]), expected, strict=True):
        difference = float(np.abs(actual - wanted).max(initial=0))
        if not difference <= TOLERANCE * max(1.0, float(np.abs(wanted).max(initial=0))):
            raise VerificationError(
                f"{path}: the plan's output is {difference:.3g} off the student's; nothing was written, "
                "please report this"
            )
        largest = max(largest, difference)
    return largest
