"""Synthetic problems that declare their Pareto set and their constants, and a check of every declaration.

One problem per file, under the name in its ``@problem``; a problem of one's own is a subclass of :class:`Problem`::

    from mtlverify.problems import check_declarations

    for declaration in check_declarations(mtlcore.create("problem", "quadratics", n_tasks=5, angle=95.0)):
        print(declaration.name, declaration.holds, declaration.detail)
"""

from mtlverify.problems.declarations import Declaration, check_declarations
from mtlverify.problems.problem import Problem, problem

__all__ = ["Declaration", "Problem", "check_declarations", "problem"]
