"""The laws, one file per theme. Each is registered by name in mtlverify/registration.py."""
