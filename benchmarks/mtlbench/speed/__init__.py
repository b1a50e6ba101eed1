"""What a training step costs. Each module is one measurement with its own command line.

* ``mtl speed gradients``: task gradients, against TorchJD, LibMTL's form and hand-written loops.
"""

import os

# The profiler that counts memory would otherwise print two lines per measurement.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
