"""Small experiments that back a statement in the documentation; each module is one, with its own command line."""
