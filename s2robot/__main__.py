"""`python -m s2robot` is the same as `s2robot`."""

import sys

from s2robot.cli import main

if __name__ == "__main__":
    sys.exit(main())
