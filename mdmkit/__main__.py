"""`python -m mdmkit`."""

from __future__ import annotations

import sys

from mdmkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
