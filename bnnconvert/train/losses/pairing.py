"""Modules that stand in student and teacher under the same path, chosen by globs."""

from collections import Counter
from fnmatch import fnmatchcase

from torch import nn
from torch.fx import GraphModule, Node

from bnnconvert.errors import UsageError
from bnnconvert.graph import ACTIVATIONS, input_of, is_add, is_call_of, shape_of
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.values.tables import nearest


def paired_paths(student: nn.Module, teacher: nn.Module, at: list[str], *, what: str) -> list[str]:
    """Paths that match one of the globs and that both models call exactly once, in the student's order.

    Raises: UsageError naming a glob that matches nothing.
    """
    twins = called_once(teacher)
    common = [path for path in called_once(student) if path in twins]
    chosen: list[str] = []
    for glob in at:
        found = [path for path in common if fnmatchcase(path, glob)]
        if not found:
            raise UsageError(
                f"training.losses: {what} at {glob!r} matches no module that both student and teacher call once; "
                f"{nearest(glob, common)}"
            )
        chosen += found
    return [path for path in common if path in chosen]


def alike_activations(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Paths of activations behind a binary layer that hold in the student what they hold in the teacher.

    Both are called once and are of one shape, and both follow an addition or neither does: where a rewrite has put a
    shortcut around one convolution, the sum of the two is nothing that the teacher has.
    """
    if not isinstance(student, GraphModule) or not isinstance(teacher, GraphModule):
        return []
    nodes = list(student.graph.nodes)
    first = next((i for i, node in enumerate(nodes) if is_call_of(student, node, BinaryLayer)), len(nodes))
    ours = {str(n.target): n for n in nodes[first:] if is_call_of(student, n, ACTIVATIONS)}
    theirs = {str(n.target): n for n in teacher.graph.nodes if is_call_of(teacher, n, ACTIVATIONS)}
    once = set(called_once(student)) & set(called_once(teacher))
    pairs = ((path, node, theirs[path]) for path, node in ours.items() if path in once and path in theirs)
    return [p for p, a, b in pairs if _sizes(a) == _sizes(b) and is_add(input_of(a)) == is_add(input_of(b))]


def _sizes(node: Node) -> tuple[int, ...]:
    """Shape of one sample: the two graphs may know their shapes from another number of them."""
    return (shape_of(node) or ())[1:]


def called_once(model: nn.Module) -> list[str]:
    """Paths of the modules that a model calls exactly once, in order."""
    if isinstance(model, GraphModule):
        calls = Counter(str(node.target) for node in model.graph.nodes if node.op == "call_module")
        return [path for path, count in calls.items() if count == 1]
    return [path for path, module in model.named_modules() if not any(True for _ in module.children())]


def check_shapes(path: str, student: tuple[int, ...], teacher: tuple[int, ...], *, what: str) -> None:
    """Compare the shapes of two paired outputs.

    Raises: UsageError naming the path and both shapes.
    """
    if student != teacher:
        raise UsageError(
            f"training.losses: {what} cannot compare {path!r}: the student's output is {student}, "
            f"the teacher's {teacher}; leave the path out."
        )
