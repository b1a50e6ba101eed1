"""Exact solvers for the K x K problems behind the aggregators: float64 numpy, no modelling layer.

All of them work on the row-normalised Gramian (:mod:`.cosines`), so that the size of the gradients plays no part in
how well a problem is conditioned, and all of them return a :class:`~.certificate.Certificate`.

Resolution. A Gramian squares the conditioning of the rows: two gradients that differ by less than about 1e-8 in
angle have a cosine that rounds to 1, and no method that sees only G can tell them apart. The solvers treat
such rows as dependent; the weights they return for them are then good to the rounding error of d = J^T w.
"""
