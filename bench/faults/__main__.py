"""`python -m bench.faults`."""

from bench.faults import main

if __name__ == "__main__":
    raise SystemExit(main())
