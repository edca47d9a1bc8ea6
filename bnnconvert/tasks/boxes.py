"""Boxes (x1, y1, x2, y2) in fractions of the image's width and height: overlaps, and which of many to keep."""

import torch
from torch import Tensor


def area(boxes: Tensor) -> Tensor:
    """Area of each box, 0 for one that is turned inside out. Shapes: (..., 4) -> (...)."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and the union. Shapes: (..., 4), (..., 4), which broadcast -> (...)."""
    corners = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    common = area(torch.cat(corners, -1))
    union = area(a) + area(b) - common
    return common / union.clamp(min=1e-9), union


def generalized_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union, less what of the enclosing box neither covers, in (-1, 1].

    Shapes: (..., 4), (..., 4), which broadcast -> (...).

    Source: Rezatofighi et al., Generalized Intersection over Union, CVPR 2019, arXiv:1902.09630
    """
    share, union = overlap(a, b)
    hull = area(torch.cat([torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], -1))
    return share - (hull - union) / hull.clamp(min=1e-9)


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, *, limit: float) -> Tensor:
    """Indices of the boxes that overlap none with a better score and their label by more than `limit`, best first.

    Shapes: (n, 4), (n,), (n,) -> (m,).
    """
    order = scores.argsort(descending=True, stable=True)
    shares, _ = overlap(boxes[order, None], boxes[None, order])
    rivals = (shares > limit) & (labels[order, None] == labels[None, order])
    kept = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    for place in range(len(order)):
        if kept[place]:
            kept[place + 1 :] &= ~rivals[place, place + 1 :]
    return order[kept]
