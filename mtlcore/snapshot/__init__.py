"""What a step may disturb, saved and put back bit for bit.

Each kind of state is a small value that is taken when it is made and has one method, ``restore()``:

* :class:`Noise`: the random streams of torch (every device), numpy and python;
* :class:`Switches`: gradient mode, and whether attention may take its inference path;
* :class:`Buffers`: the buffers of modules, and their plain attributes (``training``, counters, caches);
* :class:`Structure`: all that a module holds: class, attributes, containers, hooks;
* :class:`Parameters`: bits and ``requires_grad`` of tensors;
* :class:`Gradients`: their ``.grad``;
* :class:`History`: state, options and counters of optimizers.

:class:`Snapshot` puts those that are asked for together. Only what is asked for is copied: a plain step needs noise and
buffers; parameters and history are worth their memory only where something is about to move them.
"""

from mtlcore.snapshot.history import History as History
from mtlcore.snapshot.interrupts import interrupts_held as interrupts_held
from mtlcore.snapshot.modules import Buffers as Buffers
from mtlcore.snapshot.modules import Structure as Structure
from mtlcore.snapshot.modules import copied_buffers as copied_buffers
from mtlcore.snapshot.streams import Noise as Noise
from mtlcore.snapshot.streams import Switches as Switches
from mtlcore.snapshot.tensors import Gradients as Gradients
from mtlcore.snapshot.tensors import Parameters as Parameters
from mtlcore.snapshot.tensors import do_all as do_all
from mtlcore.snapshot.tensors import put_back as put_back
from mtlcore.snapshot.whole import Snapshot as Snapshot
from mtlcore.snapshot.whole import undo_on_error as undo_on_error
