"""The networks of the official benchmarks, as published; each source says where from."""
