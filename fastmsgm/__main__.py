"""``python -m fastmsgm``: the command line."""

import sys

from fastmsgm.cli import main

sys.exit(main())
