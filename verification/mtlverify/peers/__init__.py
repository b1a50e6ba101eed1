"""Other libraries under the same lamp: their aggregators, adapted, against the same laws.

``mtl peers`` runs the harness over the aggregators of TorchJD, if it is installed, and prints the same
kind of ledger as for the built-in methods. Nothing here is needed to use mtlcore.
"""
