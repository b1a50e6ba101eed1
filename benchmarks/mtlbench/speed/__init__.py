"""What a training step costs. Each module is one measurement with its own command line.

* ``mtl speed distributed``: two processes, against one, DDP's plain step and rows that are all summed; bytes sent.
* ``mtl speed everyday``: many objectives, micro-batches, sparse tables, hundreds of dependent gradients.
* ``mtl speed first-step``: the check of the gradient source in the first step, on deep and wide trunks.
* ``mtl speed gradients``: task gradients, against TorchJD, LibMTL's form and hand-written loops.
* ``mtl speed loss-level``: a step of methods that read losses only, against a summed loss.
* ``mtl speed report``: the report of 50,000 records.
* ``mtl speed solvers``: the weights alone, given the Gramian, against TorchJD.
* ``mtl speed teleports``: what a teleport costs.
"""

import os

# The profiler that counts memory would otherwise print two lines per measurement.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
