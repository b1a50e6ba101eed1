"""Stored counterexamples, one JSON file per method. Data only: see :mod:`mtlverify.ledger.store`."""
