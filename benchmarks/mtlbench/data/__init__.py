"""Where real data come from: a registry of sources, found or fetched, checked by hash, never committed."""
