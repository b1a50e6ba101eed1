"""Aggregators around any other aggregator; ``keeps`` of each says which promises of the wrapped method still hold."""
