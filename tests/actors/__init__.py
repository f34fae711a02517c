"""Tests of actors and supervision."""
