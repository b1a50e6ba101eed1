"""Who checks the checks: deliberately broken plugins that the laws must refute, and correct twins that they must not.

``python -m mtlverify.mutants`` prints the mutation score and the false-alarm rate.
"""
