"""`python -m seqwm` is the command line."""

from seqwm.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
