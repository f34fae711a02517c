"""Agents: actors that work off durable streams. Public names are imported from `omniactors`."""
