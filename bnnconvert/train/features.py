"""Outputs of chosen modules, or what enters them, taken along in a forward pass."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

_ENTERING = ":input"


def entering(path: str) -> str:
    """Name of the feature that enters the module at `path`; a path alone is the name of its output."""
    return path + _ENTERING


class Features:
    """Collects the features of these names; `take` hands them over after each forward pass."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self._seen: dict[str, Tensor] = {}
        self._handles = []
        for name in names:
            module = model.get_submodule(name.removesuffix(_ENTERING))
            if name.endswith(_ENTERING):
                self._handles.append(module.register_forward_pre_hook(self._before(name)))
            else:
                self._handles.append(module.register_forward_hook(self._behind(name)))

    def _before(self, name: str) -> Any:
        def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._seen[name] = inputs[0].clone()

        return keep

    def _behind(self, name: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            # A copy, as an in-place activation behind the module would overwrite it.
            self._seen[name] = output.clone()

        return keep

    def take(self) -> dict[str, Tensor]:
        """The features of the last forward pass, by name; forgotten afterwards."""
        seen, self._seen = self._seen, {}
        return seen

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
