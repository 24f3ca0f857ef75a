"""`python -m benchmark` is `bdbench`."""

from benchmark.cli import entry

# Worker processes import this file, too.
if __name__ == "__main__":
    entry()
