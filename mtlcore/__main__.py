"""``python -m mtlcore`` is ``mtl``."""

from mtlcore.cli import main

if __name__ == "__main__":
    main()
