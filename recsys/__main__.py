"""``python -m recsys``: the ``recsys`` command, also where its script is not on the path."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the working folder, which Python puts first: a numpy.py that lies there is not to be run
    from recsys.cli import main

    sys.exit(main())
