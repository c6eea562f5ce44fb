"""`python -m bench.day`."""

import sys

from bench.day.play import main

sys.exit(main())
