"""Asking plugins safely: what they may see, whether what they return is what the contract says, and errors that name
the plugin and its distribution. One file per kind."""
