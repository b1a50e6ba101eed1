"""mtlcore beside other libraries: one module for each, which alone needs that library.

Loggers (:mod:`mtlcore.integrations.csv`, :mod:`~mtlcore.integrations.tensorboard`,
:mod:`~mtlcore.integrations.wandb`) are plugins: add one, and every step of this process is logged::

    import mtlcore
    from mtlcore.integrations.csv import CSVLogger

    mtlcore.add_plugin(CSVLogger("run.csv"))

Trainers (:mod:`mtlcore.integrations.lightning`, :mod:`~mtlcore.integrations.transformers`,
:mod:`~mtlcore.integrations.accelerate`) own the backward pass; each module has what puts a ``MultiTask`` into it.
"""
