"""``python -m aiosollol``: the command line, where no script is on the path."""

import sys

from aiosollol.cli import main

if __name__ == "__main__":
    sys.exit(main())
