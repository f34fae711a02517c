"""Durable streams: the envelope, the settlement, the backend protocol and its implementations."""
