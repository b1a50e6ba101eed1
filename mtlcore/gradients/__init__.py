"""How task gradients are obtained. Every exact source gives the same numbers; they differ in cost.

* :mod:`~mtlcore.gradients.losses_only`: one backward pass of the weighted sum; no task gradients.
* :mod:`~mtlcore.gradients.sequential`: K vector-Jacobian products, rows kept; works with any module; the reference.
* :mod:`~mtlcore.gradients.batched`: the same for all tasks at once, under vmap.
* :mod:`~mtlcore.gradients.streaming`: factors instead of rows; the Gramian without K x P numbers.
* :mod:`~mtlcore.gradients.features_only`: Gramian at the shared representation; cheap, a surrogate.

The :mod:`~mtlcore.gradients.planner` picks, by :mod:`~mtlcore.gradients.calibration`. The three exact ones share their
machinery: :mod:`~mtlcore.gradients.front` differentiates, :mod:`~mtlcore.gradients.taps` reads cotangents inside the
trunk, :mod:`~mtlcore.gradients.rows` knows in which form each parameter's share is stored,
:mod:`~mtlcore.gradients.jacobian` puts them together. Beside them stand
:mod:`~mtlcore.gradients.accumulation` (micro-batches) and :mod:`~mtlcore.gradients.refresh` (kept weights).
"""
