"""Make the indexes, then serve the app. See :mod:`objemb_lib.show.app`."""

from __future__ import annotations

import argparse
import os
import sys

from objemb_lib import config
from objemb_lib.config import ObjembError
from objemb_lib.show import app


def main() -> int:
    """The command line."""
    config.tune_process()
    parser = argparse.ArgumentParser(prog="python -m objemb_lib.show.app", description=app.__doc__)
    parser.add_argument("--photos", default="", help="folder to search (default: mini-battles)")
    parser.add_argument("--port", type=int, default=8866)
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    asked = parser.parse_args()
    os.environ |= app.environment(asked.photos)
    try:
        app.ways(app.gallery(), progress=True)
    except ObjembError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"The search is at http://127.0.0.1:{asked.port}/ until you press Ctrl+C.", flush=True)
    os.execv(sys.executable, app.command(asked.port, not asked.no_browser))


if __name__ == "__main__":
    sys.exit(main())
