"""Run the command line from a source tree: ``python -m empirical verify``."""

from empirical.cli.main import main

if __name__ == "__main__":
    main()
