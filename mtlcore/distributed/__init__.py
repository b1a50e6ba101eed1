"""Many processes, one step: the method of the global batch, on ``torch.distributed``.

Every process holds the same network and a batch of its own. The task gradients of the step are the means over the
processes; every process sees the same numbers, so that each comes to the same answer.

Read in this order: :mod:`~mtlcore.distributed.processes` (what a ``MultiTask`` asks), :mod:`~mtlcore.distributed.wire`
(the collectives, and their bytes), :mod:`~mtlcore.distributed.agreement` (the first step: is it the same run
everywhere?), :mod:`~mtlcore.distributed.verdict` (one process fails: all do), :mod:`~mtlcore.distributed.roster` (the
parameters outside of the trunk), :mod:`~mtlcore.distributed.shared` (task gradients of the global batch) with
:mod:`~mtlcore.distributed.shards` (each process holds some columns of J), :mod:`~mtlcore.distributed.sharded` (FSDP2)
with :mod:`~mtlcore.distributed.dtensors` (its shards), :mod:`~mtlcore.distributed.passes`,
:mod:`~mtlcore.distributed.sums` (micro-batches) and :mod:`~mtlcore.distributed.heads_apart` (tasks that some process
lacks), :mod:`~mtlcore.distributed.answers` (the same one everywhere), :mod:`~mtlcore.distributed.searching`
(teleports), :mod:`~mtlcore.distributed.refusals` (what cannot be served, by name). For users:
:mod:`~mtlcore.distributed.hook` (gradients coded on their way) and :mod:`~mtlcore.distributed.checkpoint` (DCP).
"""
