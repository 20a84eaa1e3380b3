"""`python -m bayesd.cli`: the command without its script, for a tree that is not installed."""

from bayesd.cli import main

if __name__ == "__main__":
    main()
