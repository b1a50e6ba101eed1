"""The step size of parameters that a method learns itself, as a function of the number of finished steps.

In published code such parameters (the log variances of ``uw``, the scales of ``imtl-l``, the router of ``bilb4mtl``)
are in the network's optimizer, so its schedule changes their step size, too. A view has no optimizer; therefore the
schedule of the training loop is given as an option here:

- "constant": lr.
- "step": lr * lr_factor^(step // lr_steps), the closed form of torch's ``StepLR`` stepped once a step.
- "cosine": lr * (1 + cos(pi step / lr_steps)) / 2, that of ``CosineAnnealingLR``; 0 from ``lr_steps`` on.

For a schedule in epochs, lr_steps is the number of epochs times the steps per epoch. A schedule that depends on a
validation loss (``ReduceLROnPlateau``) is not known in advance and is not offered.
"""

from __future__ import annotations

import math

from mtlcore.errors import ConfigurationError

KINDS = ("constant", "step", "cosine")


def check(method: str, kind: str, steps: int | None) -> None:
    """Check the options of a schedule; called at construction.

    Raises:
        ConfigurationError: a schedule without its length, or a length without a schedule.
    """
    if kind != "constant" and steps is None:
        raise ConfigurationError(f"{method}: lr_schedule={kind!r} needs lr_steps=..., its length in steps.")
    if kind == "constant" and steps is not None:
        raise ConfigurationError(f"{method}: lr_steps={steps} has no effect without lr_schedule='step' or 'cosine'.")


def rate(lr: float, kind: str, steps: int | None, factor: float, step: int) -> float:
    """The step size after ``step`` finished steps."""
    if kind == "constant" or steps is None:
        return lr
    if kind == "step":
        return lr * factor ** (step // steps)
    return 0.5 * lr * (1.0 + math.cos(math.pi * min(step, steps) / steps))
