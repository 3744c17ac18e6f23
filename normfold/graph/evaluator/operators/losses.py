"""Losses, and the selection of boxes."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.values import Tensor


def negative_log_likelihood(call: Call, x: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """-x at the target's class (axis 1), weighted; the mean is by weight, and what is ignored has none."""
    return _loss(call, x, target, weight)


def softmax_cross_entropy(call: Call, x: Tensor, target: Tensor, weight: Tensor | None = None) -> Any:
    """As above, of the logarithm of the softmax, which is the second output."""
    logarithm = F.log_softmax(x, dim=1)
    return _loss(call, logarithm, target, weight), logarithm


def _loss(call: Call, x: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    kept = torch.ones_like(target, dtype=torch.bool)
    if call.has("ignore_index"):
        kept = target != call.integer("ignore_index", 0)
    place = torch.where(kept, target, 0).long()
    share = torch.ones(target.shape, dtype=torch.float64) if weight is None else weight[place]
    share = torch.where(kept, share, 0.0)
    loss = -x.gather(1, place.unsqueeze(1)).squeeze(1) * share
    match call.text("reduction", "mean"):
        case "none":
            return loss
        case "sum":
            return loss.sum()
        case "mean":
            return loss.sum() / share.sum()
    raise call.refuse(f"reduction {call.text('reduction', '')!r}")


def non_max_suppression(
    call: Call,
    boxes: Tensor,
    scores: Tensor,
    most: Tensor | None = None,
    overlap: Tensor | None = None,
    least: Tensor | None = None,
) -> Tensor:
    """The boxes of the best scores that overlap no better one by more than a threshold: rows of (image, class, box).

    What decides is computed in float32, as in onnxruntime.
    """
    centred = bool(call.integer("center_point_box", 0))
    count = 0 if most is None else int(most.reshape(-1)[0])
    threshold = 0.0 if overlap is None else float(overlap.reshape(-1)[0])
    found: list[list[int]] = []
    for image in range(boxes.shape[0]):
        corners = _corners(boxes[image].float(), centred=centred)
        for kind in range(scores.shape[1]):
            own = scores[image, kind]
            order = own.argsort(descending=True, stable=True)
            if least is not None:
                order = order[own[order].float() > least.reshape(-1)[0].float()]
            taken = 0
            while taken < count and order.numel():
                found.append([image, kind, int(order[0])])
                taken += 1
                order = order[1:][_overlap(corners[order[0]], corners[order[1:]]) <= threshold]
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 3)


def _corners(boxes: Tensor, *, centred: bool) -> Tensor:
    """(left, top, right, bottom) of boxes by any two corners, or by centre and size."""
    if centred:
        return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)
    first, second = boxes[:, :2], boxes[:, 2:]
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=1)


def _overlap(box: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of one box with others; zero where an area is."""
    sides = (torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])).clamp_(min=0)
    common = sides.prod(dim=1)
    area, areas = (box[2:] - box[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(dim=1)
    union = area + areas - common
    return torch.where((common > 0) & (area > 0) & (areas > 0) & (union > 0), common / union, 0.0)


ROWS: Rows = {
    "NegativeLogLikelihoodLoss": {(12, 13, 22): negative_log_likelihood},
    "NonMaxSuppression": {(10, 11): non_max_suppression},
    "SoftmaxCrossEntropyLoss": {(12, 13): softmax_cross_entropy},
}
