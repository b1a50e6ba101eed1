"""One step of a run, in the order in which it happens.

:mod:`~mtlcore.step.run` holds what a run is made of and where it stands; :mod:`~mtlcore.step.assembly` makes it of the
arguments of ``MultiTask``. A step is then :mod:`~mtlcore.step.prepare` (from losses to the view),
:mod:`~mtlcore.step.conflict` (detector and teleport), :mod:`~mtlcore.step.answer` (the method, and ``.grad``).
:mod:`~mtlcore.step.whole` puts the user's closure, the optimizer and :mod:`~mtlcore.step.second_look` around these, and
makes it all or nothing. :mod:`~mtlcore.step.micro` takes the micro-batches before the last one,
:mod:`~mtlcore.step.tell` says what happened, and :mod:`~mtlcore.step.tasks` changes who takes part.
"""
