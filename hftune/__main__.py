"""`python -m hftune`."""

from .cli import main

main()
