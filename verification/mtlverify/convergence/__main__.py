"""``python -m mtlverify.convergence``."""

from mtlverify.convergence.command import app

if __name__ == "__main__":  # also imported by spawned processes
    app()
