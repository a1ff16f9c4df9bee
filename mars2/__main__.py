"""`python -m mars2` is the command `mars2`."""

from mars2.cli import main

main()
