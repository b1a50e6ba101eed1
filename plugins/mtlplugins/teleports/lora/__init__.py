"""COST's teleport: a low-rank jump that keeps the losses approximately.

* :mod:`.strategy`: the plugin, ``lora``;
* :mod:`.tangent`, :mod:`.penalty`: the two searches;
* :mod:`.objectives`: what a search maximises;
* :mod:`.low_rank`: the low-rank factors;
* :mod:`.field`: the losses around the starting point, used by all of these.
"""
