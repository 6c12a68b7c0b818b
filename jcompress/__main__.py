"""`python -m jcompress` is the command `jcompress`."""

import sys

from jcompress.cli import main

sys.exit(main())
