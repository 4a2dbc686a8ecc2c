"""`python -m rollbackd`: the same as the installed command."""

from rollbackd.cli.main import main

main()
