"""`python -m spikegpt` is `spikegpt`."""

from .cli import main

if __name__ == "__main__":
    main()
