"""What every target begins with: a student deployed and lowered, with the refusals that no target can do without."""

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from bnnconvert.artifact.schema import Artifact, Metadata
from bnnconvert.errors import RefusalError, UsageError
from bnnconvert.lower.deploy import deploy
from bnnconvert.lower.program import lower
from bnnconvert.runtime.session import flattened


def deployed_form(student: GraphModule, golden_input: Tensor) -> tuple[GraphModule, Tensor]:
    """The deployed graph of a student on the CPU, and the golden input as the file will hold it.

    Raises: UsageError, RefusalError.
    """
    if golden_input.dim() < 1 or len(golden_input) < 1:
        raise UsageError("export: the golden input has no sample; give at least one")
    golden_input = golden_input.detach().cpu().contiguous()
    device = next((p.device for p in student.parameters()), torch.device("cpu"))
    if device.type != "cpu":
        raise UsageError(
            "export: the student must be on the CPU to be compared with its packed form; call student.cpu() first"
        )
    return deploy(student, golden_input), golden_input


def draft_of(deployed: GraphModule, golden_input: Tensor, metadata: Metadata | None = None) -> Artifact:
    """The artifact of a deployed graph, but for the golden outputs.

    Raises: RefusalError.
    """
    check_independent(deployed, golden_input)
    program, tensors = lower(deployed, golden_input)
    return Artifact(program, tensors, metadata or Metadata(), golden_input.numpy(), ())


def check_independent(deployed: GraphModule, golden_input: Tensor) -> None:
    """Refuse a model in which one sample changes the output of another: the batch could not stay free."""
    first = golden_input[:1]
    with torch.no_grad():
        outputs = [
            flattened(deployed(torch.cat([first, other]))) for other in (golden_input[-1:], torch.zeros_like(first))
        ]
    for one, two in zip(*outputs, strict=True):
        if not isinstance(one, Tensor) or one.dim() < 1 or len(one) != 2:
            raise RefusalError("export: each output must be a tensor with the samples on its first axis; return it so")
        if not torch.equal(one[0], two[0]):
            raise RefusalError(
                "export: one sample of a batch changes the output of another; a packed model treats each alone"
            )


def module_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers of a module. Units: bytes."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
