"""What breaks, and what must hold all the same: real servers, real processes, real time."""
