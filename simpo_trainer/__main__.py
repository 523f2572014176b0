"""`python -m simpo_trainer` is the command `simpo`; launchers start it so, because it needs no script on disk."""

from .cli import main

if __name__ == "__main__":
    main()
