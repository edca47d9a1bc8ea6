"""Outputs of chosen modules, taken along in a forward pass."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


class Features:
    """Collects the outputs of the modules at `paths`; `take` hands them over after each forward pass."""

    def __init__(self, model: nn.Module, paths: Iterable[str]) -> None:
        self._seen: dict[str, Tensor] = {}
        self._handles = [model.get_submodule(path).register_forward_hook(self._hook(path)) for path in paths]

    def _hook(self, path: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            # A copy, as an in-place activation behind the module would overwrite it.
            self._seen[path] = output.clone()

        return keep

    def take(self) -> dict[str, Tensor]:
        """The features of the last forward pass, by path; forgotten afterwards."""
        seen, self._seen = self._seen, {}
        return seen

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
