"""Target `packed`: lower, write, reopen in a fresh session, compare with the student, and only then keep the file."""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from bnnconvert.artifact.schema import Array, Artifact, Metadata
from bnnconvert.artifact.writer import write
from bnnconvert.errors import ArtifactError, VerificationError
from bnnconvert.exporters.draft import deployed_form, draft_of, module_bytes
from bnnconvert.exporters.verify import verify
from bnnconvert.lower.deploy import tensor_bytes
from bnnconvert.runtime.session import Session, flattened
from bnnconvert.values.files import atomic_write
from bnnconvert.values.inputs import Example, as_tuple
from bnnconvert.values.program import Constant, Node, Program
from bnnconvert.values.report import ExportReport, PackedLayerReport, VerifyReport


def export_packed(
    student: GraphModule,
    path: str | Path,
    *,
    golden_input: Example,
    metadata: Metadata | None = None,
    teacher: nn.Module | None = None,
) -> ExportReport:
    """Write the packed artifact of a student whose every binary operand is binary.

    `golden_input` holds a few samples as the model sees them, of each input where it takes several. `teacher` is the
    float model, for its size.

    Raises: RefusalError for a model that has no packed form, VerificationError where the file computes something
    else than the student; nothing is left behind then.
    """
    deployed, golden = deployed_form(student, golden_input)
    report = export_deployed(deployed, student, path, golden_input=golden, metadata=metadata)
    return dataclasses.replace(report, float_bytes=0 if teacher is None else module_bytes(teacher))


def export_deployed(
    deployed: GraphModule,
    student: GraphModule,
    path: str | Path,
    *,
    golden_input: Example,
    metadata: Metadata | None = None,
) -> ExportReport:
    """Write a deployed graph and prove that the file computes what `student` computes."""
    golden_inputs = as_tuple(golden_input)
    draft = draft_of(deployed, golden_inputs, metadata)
    outputs = tuple(flattened(Session(draft).run(*draft.golden_inputs)))
    artifact = dataclasses.replace(draft, golden_outputs=outputs)
    with atomic_write(path) as temporary:
        write(artifact, temporary)
        compared = _prove(temporary, student, golden_inputs, path)
        file_bytes = temporary.stat().st_size
    tensor, golden = _bytes(draft.tensors.values()), _bytes((*artifact.golden_inputs, *outputs))
    return ExportReport(
        path=str(path),
        predicted_bytes=tensor_bytes(deployed),
        tensor_bytes=tensor,
        golden_bytes=golden,
        header_bytes=file_bytes - tensor - golden,
        file_bytes=file_bytes,
        float_bytes=0,
        golden_difference=compared.largest_difference,
        layers=tuple(_layers(draft.program, artifact)),
    )


def _prove(written: Path, student: GraphModule, golden: tuple[Tensor, ...], path: str | Path) -> VerifyReport:
    """Open what was written and compare it with the student."""
    try:
        session = Session(written)
        session.golden_difference()
    except (ArtifactError, VerificationError) as error:
        raise VerificationError(
            f"{path}: the file just written does not hold ({error}); it was removed, please report this"
        ) from error
    report = verify(student, session, [golden])
    if not report.passed:
        raise VerificationError(f"{path}: {report.failure}; it was removed, please report this")
    return report


def _bytes(arrays: Iterable[Array]) -> int:
    return sum(array.nbytes for array in arrays)


def _layers(program: Program, artifact: Artifact) -> Iterable[PackedLayerReport]:
    """Sizes of each binary layer, called once or more."""
    packed: dict[str, list[Node]] = {}
    for node in program.nodes:
        if node.op.startswith("bnnconvert."):
            packed.setdefault(node.layer, []).append(node)
    weighted = (node for node in program.nodes if "weight" in node.arguments)
    binary = {node.layer for node in weighted if node.op.startswith(("bnnconvert.binary_", "bnnconvert.signed_"))}
    for layer, nodes in packed.items():
        if layer not in binary:
            continue
        read = {(n, a.tensor) for node in nodes for n, a in node.arguments.items() if isinstance(a, Constant)}
        tensors = {tensor: (name == "weight", artifact.tensors[tensor]) for name, tensor in sorted(read)}
        row_bits = next(_row_bits(node) for node in nodes if "weight" in node.arguments)
        yield PackedLayerReport(
            layer=layer,
            binary_weights=sum(a.shape[0] * a.shape[1] * row_bits for is_weight, a in tensors.values() if is_weight),
            weight_bytes=_bytes(a for is_weight, a in tensors.values() if is_weight),
            other_bytes=_bytes(a for is_weight, a in tensors.values() if not is_weight),
        )


def _row_bits(node: Node) -> int:
    arguments: dict[str, Any] = dict(node.arguments)
    features = arguments.get("in_features", arguments.get("features"))
    if features is not None:
        return int(features)
    return int(math.prod(arguments["kernel"]) * arguments["in_channels"] // arguments["groups"])
