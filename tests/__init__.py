"""Tests of omniactors."""
