"""Losses and metrics of segmentation, depth and normals with pixels that have no label, as on NYUv2 and Cityscapes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ANGLE_BINS = 1800
"""0.1 degree each."""
WITHIN = (11.25, 22.5, 30.0)


def loss(kind: str, output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over labelled pixels; L1 and one minus the cosine over pixels that are not zero [code: MTAN].

    A batch without any labelled pixel has loss zero.
    """
    if kind == "segmentation":
        total = F.cross_entropy(output, target.long(), ignore_index=-1, reduction="sum")
        return total / (target >= 0).sum().clamp_min(1)
    valid = _valid(target)
    count = valid.sum().clamp_min(1)
    if kind == "depth":
        return ((output - target).abs() * valid).sum() / count
    cosine = (F.normalize(output, dim=1) * target).sum(dim=1, keepdim=True)
    return ((1.0 - cosine) * valid).sum() / count


def _valid(target: Tensor) -> Tensor:
    """(N, 1, H, W): pixels that have a label."""
    return target.abs().sum(dim=1, keepdim=True) != 0


def tally(kind: str, output: Tensor, target: Tensor) -> Tensor:
    """Sums that determine the metrics: confusion matrix; errors and count; histogram and sum of angles."""
    if kind == "segmentation":
        classes = output.shape[1]
        seen = (target >= 0) & (target < classes)
        pairs = target.long()[seen] * classes + output.argmax(dim=1)[seen]
        return torch.bincount(pairs, minlength=classes**2).to(torch.float64)
    valid = _valid(target)
    if kind == "depth":
        error, true = (output - target).abs()[valid].double(), target[valid].double()
        return torch.stack([error.sum(), (error / true).sum(), error.new_tensor(float(error.numel()))])
    cosine = (F.normalize(output, dim=1) * target).sum(dim=1, keepdim=True)[valid]
    angle = torch.rad2deg(torch.arccos(cosine.clamp(-1.0, 1.0).double())).cpu()
    within = torch.stack([(angle < bound).sum().double() for bound in WITHIN])
    return torch.cat([torch.histc(angle, bins=ANGLE_BINS, min=0.0, max=180.0), within, angle.sum()[None]])


def score(kind: str, tallied: Tensor) -> dict[str, float]:
    """The metrics of one task over all labelled pixels [choice: the published code averages over batches]; the median
    angle is exact to 0.1 degree."""
    if kind == "segmentation":
        classes = round(len(tallied) ** 0.5)
        confusion = tallied.reshape(classes, classes)
        hit = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - hit
        iou = (hit / union)[union > 0]
        return {"mIoU": 100 * float(iou.mean()), "pixel accuracy": 100 * float(hit.sum() / confusion.sum())}
    if kind == "depth":
        return {
            "absolute error": float(tallied[0] / tallied[2]),
            "relative error": 100 * float(tallied[1] / tallied[2]),
        }
    counts = tallied[:ANGLE_BINS]
    total = counts.sum()
    middle = int(torch.searchsorted(counts.cumsum(0), total / 2))
    shares = {f"within {b:g}°": 100 * float(n / total) for b, n in zip(WITHIN, tallied[ANGLE_BINS:-1])}
    return {
        "mean angle": float(tallied[-1] / total),
        "median angle": 180.0 * (min(middle, ANGLE_BINS - 1) + 0.5) / ANGLE_BINS,
        **shares,
    }
