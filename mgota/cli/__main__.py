"""`python -m mgota.cli`: the command where its script is not on the path."""

from mgota.cli import main

main()
