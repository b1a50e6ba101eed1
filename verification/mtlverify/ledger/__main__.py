"""``python -m mtlverify.ledger``."""

from mtlverify.ledger.command import app

if __name__ == "__main__":  # also imported by spawned processes
    app()
