"""The built-in methods of every kind, registered through the same hooks as those of third parties."""
