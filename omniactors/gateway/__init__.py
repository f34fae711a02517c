"""The gateway: watchers and HTTP on one port. It knows the bus, and nothing of actors."""
