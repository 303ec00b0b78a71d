"""``python -m fastmsgm``: the command line."""

import sys

from fastmsgm.tools.cli import main

sys.exit(main())
