"""Turn a float PyTorch model into a binary neural network: convert, finetune, export, run."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Names of the public API and where they live. Resolved on first use, so that importing this package, or the runtime
# alone, does not import torch.
_PUBLIC = {
    "convert": "bnnconvert.pipeline",
    "finetune": "bnnconvert.pipeline",
    "evaluate": "bnnconvert.pipeline",
    "export": "bnnconvert.pipeline",
    "verify": "bnnconvert.pipeline",
    "open_run": "bnnconvert.pipeline",
    "Student": "bnnconvert.pipeline",
    "Session": "bnnconvert.runtime",
    "PackedModule": "bnnconvert.runtime.module",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'bnnconvert' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
