"""`python -m benchmark` is `bdbench`."""

import sys

from benchmark.cli import main

sys.exit(main())
