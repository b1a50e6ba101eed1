"""The laws, one file per theme. ``@law`` registers each under its id; there is no other list of them."""
