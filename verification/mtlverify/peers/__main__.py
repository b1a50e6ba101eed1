"""``python -m mtlverify.peers``."""

from mtlverify.peers.command import app

if __name__ == "__main__":
    app()
