"""Aggregators around any other aggregator; what each keeps of its promises is in its ``keeps``."""
