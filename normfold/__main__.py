"""`python -m normfold`."""

from __future__ import annotations

from normfold.cli.app import main

if __name__ == "__main__":
    main()
