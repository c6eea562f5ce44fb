"""`python -m bench.cluster`."""

from bench.cluster import main

if __name__ == "__main__":
    raise SystemExit(main())
