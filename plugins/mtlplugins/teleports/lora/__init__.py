"""COST's teleport: a low-rank jump that keeps the losses approximately.

* :mod:`.strategy`: the plugin, ``lora``;
* :mod:`.tangent`, :mod:`.penalty`: the two searches;
* :mod:`.objectives`: what a search wants more of;
* :mod:`.low_rank`: the factors;
* :mod:`.field`: the losses around the starting point, on which all of these stand.
"""
