"""Graph rewrites: one file each, one row each."""

from bnnconvert.rewrite.as_images import AsImages
from bnnconvert.rewrite.base import Rewrite
from bnnconvert.rewrite.binarize import Binarize
from bnnconvert.rewrite.binarize_attention import BinarizeAttention
from bnnconvert.rewrite.ensemble import Ensemble
from bnnconvert.rewrite.gate_shortcut import GateShortcut
from bnnconvert.rewrite.group_branches import GroupBranches
from bnnconvert.rewrite.insert_batch_norm import InsertBatchNorm
from bnnconvert.rewrite.pool_shortcut import PoolShortcut
from bnnconvert.rewrite.remove_relu import RemoveRelu
from bnnconvert.rewrite.reorder_pool import ReorderPool
from bnnconvert.rewrite.replace_activation import ReplaceActivation
from bnnconvert.rewrite.shift_batch_norm import ShiftBatchNorm
from bnnconvert.rewrite.shortcut_per_conv import ShortcutPerConv
from bnnconvert.rewrite.widen import Widen

REWRITES: dict[str, type[Rewrite]] = {
    "as-images": AsImages,
    "binarize": Binarize,
    "reorder-pool": ReorderPool,
    "insert-batch-norm": InsertBatchNorm,
    "remove-relu": RemoveRelu,
    "replace-activation": ReplaceActivation,
    "shortcut-per-conv": ShortcutPerConv,
    "pool-shortcut": PoolShortcut,
    "gate-shortcut": GateShortcut,
    "widen": Widen,
    "group-branches": GroupBranches,
    "shift-batch-norm": ShiftBatchNorm,
    "binarize-attention": BinarizeAttention,
    "ensemble": Ensemble,
}
