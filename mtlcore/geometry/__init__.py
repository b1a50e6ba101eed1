"""The geometry in which an optimizer moves: what a step did to the tasks, and methods in the optimizer's own metric."""
