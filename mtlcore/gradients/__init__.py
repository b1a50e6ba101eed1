"""How task gradients are obtained. Every source gives the same numbers; they differ in cost.

* :mod:`~mtlcore.gradients.losses_only`: one backward pass of the weighted sum; no task gradients.
* :mod:`~mtlcore.gradients.sequential`: K vector-Jacobian products, rows kept; works with any module.
* :mod:`~mtlcore.gradients.features_only`: Gramian at the shared representation; cheap, a surrogate.

The :mod:`~mtlcore.gradients.planner` picks.
"""
