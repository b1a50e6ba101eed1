"""How task gradients are obtained. Every exact plan gives the same numbers; they differ in cost.

Read in this order: :mod:`~mtlcore.gradients.batch` (one forward pass), :mod:`~mtlcore.gradients.plan` (the ways there
are), :mod:`~mtlcore.gradients.rule` (which one a step takes), :mod:`~mtlcore.gradients.planner` (holds the choice and
the memory), :mod:`~mtlcore.gradients.check` (is it right on this network?), :mod:`~mtlcore.gradients.task_gradients`
(what is found, and how it becomes ``.grad``).

Three kinds of task gradients: :mod:`~mtlcore.gradients.losses_only`, :mod:`~mtlcore.gradients.features_only` and
:mod:`~mtlcore.gradients.jacobian`, whose parts are in :mod:`~mtlcore.gradients.rows`. Beneath them
:mod:`~mtlcore.gradients.front` differentiates, :mod:`~mtlcore.gradients.taps` reads cotangents inside the trunk,
:mod:`~mtlcore.gradients.graph` walks, and :mod:`~mtlcore.gradients.torch_internals` holds what torch does not promise.
Beside them :mod:`~mtlcore.gradients.accumulation` (micro-batches) and :mod:`~mtlcore.gradients.refresh` (kept weights).
"""
