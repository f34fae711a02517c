"""Helpers for the tests of people who build on omniactors."""
