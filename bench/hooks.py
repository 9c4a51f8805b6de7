"""What hooks cost and how fast events arrive: blocking hooks of 1, 50 and 500 ms, and webhooks.

Without the name of a part it measures both.

    python bench/hooks.py
    python bench/hooks.py webhooks --quick
    python bench/hooks.py blocking --dir DIR
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from measure_blocking_hooks import measure_blocking_hooks
from measure_uploads import fail_when_stuck
from measure_webhooks import measure_webhooks

PARTS = ("blocking", "webhooks")


def main() -> None:
    """Print a table for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS, help="only this one")
    parser.add_argument("--quick", action="store_true", help="less of everything: half a minute for each part")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="where the data go")
    arguments = parser.parse_args()
    fail_when_stuck()
    parts = PARTS if arguments.part is None else (arguments.part,)
    if "blocking" in parts:
        print(measure_blocking_hooks(arguments.dir, quick=arguments.quick), flush=True)
    if len(parts) > 1:
        print()
    if "webhooks" in parts:
        print(measure_webhooks(arguments.dir, quick=arguments.quick))


if __name__ == "__main__":
    main()
