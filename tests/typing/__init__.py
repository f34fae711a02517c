"""What type checkers must see: read by mypy and pyright, run by nobody."""
