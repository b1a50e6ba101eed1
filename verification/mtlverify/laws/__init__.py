"""The laws, one file per theme. Each is known by the id in its ``@law``; nothing else lists them."""
