"""Verification: laws, exact references, strategies, synthetic problems, mutants and the ledger."""
