"""Measures in closed form."""

import pytest
import torch

from mtlbench.measures.calibration import expected_calibration_error
from mtlcore.errors import ConfigurationError


def test_calibration_error_by_hand():
    # Two at 0.9, one right: |1 - 1.8|; two at 0.6, both right: |2 - 1.2|. Over four: (0.8 + 0.8) / 4.
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    labels = torch.tensor([0, 1, 0, 0])
    assert expected_calibration_error(p, labels) == pytest.approx(0.4, abs=1e-6)
    # In one bin the two gaps cancel.
    assert expected_calibration_error(p, labels, bins=1) == pytest.approx(0.0, abs=1e-6)
    assert expected_calibration_error(torch.eye(3), torch.arange(3)) == 0.0
    assert expected_calibration_error(torch.eye(3), torch.tensor([1, 2, 0])) == 1.0


def test_logits_are_refused():
    with pytest.raises(ConfigurationError, match="softmax"):
        expected_calibration_error(torch.tensor([[3.0, -1.0]]), torch.tensor([0]))
