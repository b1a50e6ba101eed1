"""Exact teleports: symmetries of the network, which keep every loss on every input.

* :mod:`.relu_rescaling`, :mod:`.random_rescaling`, :mod:`.attention_qk`, :mod:`.linear_boundary`: the plugins;
* :mod:`.channels`: finds the units of a trunk that can be rescaled. :mod:`.tracing` makes its graph, :mod:`.walk` goes
  through the graph by the rules of :mod:`.operations`, and :mod:`.plainness` says which modules have no other behaviour
  than that of their class;
* :mod:`.scaling`, :mod:`.general_maps`: the best rescaling, or the best matrix, in closed form of the task gradients;
* :mod:`.worst_cosine`: the objective of both.
"""
