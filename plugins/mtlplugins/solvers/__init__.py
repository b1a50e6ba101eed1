"""Exact solvers for the K x K problems behind the aggregators: float64 numpy, no modelling layer.

All of them work on the row-normalised Gramian (:mod:`.cosines`), so that the conditioning of a problem does not depend
on the lengths of the gradients. All of them return a :class:`~.certificate.Certificate`.

Resolution. The condition number of a Gramian is the square of that of the rows. If the angle between two gradients is
less than about 1e-8, their cosine rounds to 1, and no method that reads only G can distinguish them. The solvers treat
such rows as dependent; the returned weights are then exact up to the rounding error of d = J^T w.
"""
