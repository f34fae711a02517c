"""Actors and supervisors on trio. Public names are imported from `omniactors`."""
