"""BiLB4MTL (later LDC-MTL): loss balancing as a bilevel problem, at the cost of one backward pass.

- :mod:`.single_loop`: the method, ``bilb4mtl``.
- :mod:`.double_loop`: its penalty form with inner steps, ``bilb4mtl-double-loop``, to measure the term that the method
  leaves out.
- :mod:`.balancer`: the common part of both: TOTAL = g + lambda f, its coefficients and the router's gradient.
- :mod:`.normalisation`, :mod:`.discrepancy`, :mod:`.squash`, :mod:`.presets`: the options, one file each.
- :mod:`.router`: the interface of routers; :mod:`.free_router` and :mod:`.dense_router`, which reads :mod:`.features`.
"""
