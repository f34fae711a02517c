"""Events: what watchers see, and the bus that brings it to them. Public names are imported from `omniactors`."""
