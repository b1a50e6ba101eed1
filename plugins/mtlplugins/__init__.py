"""The built-in methods: aggregators, conflict detectors and teleports, registered like a third party's."""
