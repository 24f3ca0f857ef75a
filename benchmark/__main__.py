"""`python -m bdbench` is `bdbench`."""

from bdbench.cli import entry

# Worker processes import this file, too.
if __name__ == "__main__":
    entry()
