"""Where the methods really go: runs on problems whose Pareto set is known, measured by an independent min-norm program.

``mtl converge`` runs every method on every problem, with exact and with noisy gradients, and prints
a verdict with numbers.

    suite.py     the problems and how long a run is
    run.py       one run: a method, a problem, a trace
    rates.py     the rate that a trace shows
    claims.py    the rates that are claimed, and by whom
    verdict.py   both compared
"""
