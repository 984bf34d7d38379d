"""`python -m groundling`: the same as the command `groundling` (torchrun needs this form)."""

from groundling.cli import console

if __name__ == "__main__":
    console()
