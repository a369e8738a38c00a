"""`python -m fmjax` is the `fmjax` command."""

import sys

from fmjax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
