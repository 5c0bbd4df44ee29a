"""`python -m qcompile` and the `qcompile` command."""

import sys

from qcompile.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
