"""`python -m omniactors`: the command line, where its script is not on the path."""

from omniactors.cli import main

if __name__ == "__main__":
    main()
