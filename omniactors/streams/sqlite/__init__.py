"""The embedded backend: one SQLite file that several processes may use at once."""
