"""`python -m bench.soak`."""

import sys

from bench.soak.play import main

sys.exit(main())
