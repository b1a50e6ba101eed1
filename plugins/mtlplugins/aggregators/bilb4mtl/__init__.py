"""BiLB4MTL (later LDC-MTL): loss balancing as a bilevel problem, at the cost of one backward pass.

- :mod:`.single_loop`: the method, ``bilb4mtl``.
- :mod:`.double_loop`: its penalty form with inner steps, ``bilb4mtl-double-loop``, to measure what the method drops.
- :mod:`.balancer`: what both share: TOTAL = g + lambda f, its coefficients and the router's gradient.
- :mod:`.normalisation`, :mod:`.discrepancy`, :mod:`.squash`, :mod:`.presets`: its choices, one file each.
- :mod:`.router`: what a router is; :mod:`.free_router` and :mod:`.dense_router`, which reads :mod:`.features`.
"""
