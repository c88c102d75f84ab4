"""python -m nic."""

from nic.cli.main import main

main()
