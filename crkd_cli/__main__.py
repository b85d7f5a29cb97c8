"""`python -m crkd_cli` is the command `crkd`."""

from crkd_cli.cli import main

main()
