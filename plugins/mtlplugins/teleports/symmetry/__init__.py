"""Exact teleports: symmetries of the network, which keep every loss on every input.

* :mod:`.relu_rescaling`, :mod:`.random_rescaling`, :mod:`.attention_qk`, :mod:`.linear_boundary`: the plugins;
* :mod:`.channels`: which units of a trunk can be rescaled: :mod:`.walk` through its graph, by the rules of
  :mod:`.operations`, on modules of which :mod:`.plainness` says that they are no more than their class, and which
  :mod:`.tracing` has put into a graph;
* :mod:`.scaling`, :mod:`.general_maps`: the best rescaling, or the best matrix, in closed form of the task gradients;
* :mod:`.worst_cosine`: what they make better.
"""
