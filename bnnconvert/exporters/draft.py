"""What every target begins with: a student deployed and lowered, with the refusals that no target can do without."""

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from bnnconvert.artifact.schema import Artifact, Metadata
from bnnconvert.errors import RefusalError, UsageError
from bnnconvert.lower.deploy import deploy
from bnnconvert.lower.program import lower
from bnnconvert.runtime.session import flattened
from bnnconvert.values.inputs import Example, as_tuple


def deployed_form(student: GraphModule, golden_input: Example) -> tuple[GraphModule, tuple[Tensor, ...]]:
    """The deployed graph of a student on the CPU, and the golden inputs as the file will hold them.

    Raises: UsageError, RefusalError.
    """
    golden = as_tuple(golden_input)
    if any(x.dim() < 1 or len(x) < 1 for x in golden):
        raise UsageError("export: the golden input has no sample; give at least one")
    golden = tuple(x.detach().cpu().contiguous() for x in golden)
    device = next((p.device for p in student.parameters()), torch.device("cpu"))
    if device.type != "cpu":
        raise UsageError(
            "export: the student must be on the CPU to be compared with its packed form; call student.cpu() first"
        )
    return deploy(student, golden), golden


def draft_of(deployed: GraphModule, golden: tuple[Tensor, ...], metadata: Metadata | None = None) -> Artifact:
    """The artifact of a deployed graph, but for the golden outputs.

    Raises: RefusalError.
    """
    check_followed(deployed)
    check_independent(deployed, golden)
    program, tensors = lower(deployed, golden)
    return Artifact(program, tensors, metadata or Metadata(), tuple(x.numpy() for x in golden), ())


def check_followed(deployed: GraphModule) -> None:
    """Refuse a model with code that is called as it is."""
    for path, reason in deployed.meta.get("opaque", {}).items():
        parts = ", ".join(list(deployed.meta.get("inner", {}))[:5])
        way_out = f", or export what is inside it, part by part, with --part ({parts})" if parts else ""
        raise RefusalError(
            f"export: {path} runs code that no file can hold, as it cannot be followed: {reason}; rewrite that line "
            f"and convert again{way_out}"
        )


def check_independent(deployed: GraphModule, golden: tuple[Tensor, ...]) -> None:
    """Refuse a model in which one sample changes the output of another: the batch could not stay free."""
    others = (lambda x: x[-1:]), (lambda x: torch.zeros_like(x[:1]))
    with torch.no_grad():
        outputs = [flattened(deployed(*(torch.cat([x[:1], other(x)]) for x in golden))) for other in others]
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
