"""The ledger: what is known about every method and law, positive and negative, each with its evidence.

``python -m mtlverify.ledger`` brings it up to date: docs/reference/ledger.json, ledger.md and its figures. A refuted
law has a shrunk counterexample stored under counterexamples/, which the tests replay: it must still fail.

    subjects.py    which methods, with which hyper-parameters, have a page
    build.py       one row per subject and law
    proofs.py      what is proved, by whom, under which assumptions
    negatives.py   the negative statements that must stay true
    store.py       counterexamples on disk, and replaying them
    planar.py      the smallest counterexample that can be drawn
    figures.py     drawing it
    render.py      the page
"""
