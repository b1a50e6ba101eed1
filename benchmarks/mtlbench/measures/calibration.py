"""How far the confidence of a classifier is from its accuracy."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlcore.errors import ConfigurationError


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """sum_b |B_b| / N |accuracy(B_b) - confidence(B_b)| over ``bins`` bins of equal width of the largest probability.

    [textbook; a value on the border of two bins belongs to the lower one: choice]

    Args:
        probabilities: (N, C), rows that sum to 1; N >= 1.
        labels: (N,) integers below C.
        bins: number of bins, at least 1.

    Raises:
        ConfigurationError: rows that are not probabilities, shapes that do not fit, or no bin.
    """
    if probabilities.dim() != 2 or labels.shape != probabilities.shape[:1] or not len(labels) or bins < 1:
        raise ConfigurationError(
            f"calibration needs probabilities (N, C), labels (N,) and a bin; got {tuple(probabilities.shape)}, "
            f"{tuple(labels.shape)} and bins={bins}."
        )
    p = probabilities.detach().double()
    sums = torch.allclose(p.sum(1), torch.ones_like(p[:, 0]), atol=1e-3)
    if not sums or bool((p < 0).any()):
        raise ConfigurationError("the rows of probabilities are not probabilities: apply softmax to logits first.")
    return float(calibration_gaps(p, labels, bins).abs().sum() / len(labels))


def calibration_gaps(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Tensor:
    """(bins,) float64: of each bin, the number of right answers minus the sum of confidences. Sums over batches are
    those of all examples together; the error is the sum of their sizes, divided by N."""
    confidence, guess = probabilities.double().max(1)
    right = (guess == labels).double()
    number = (torch.ceil(confidence * bins).long() - 1).clamp(0, bins - 1)
    return torch.zeros(bins, dtype=torch.float64, device=right.device).index_add_(0, number, right - confidence)
