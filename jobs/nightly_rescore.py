"""Bring a selection up to date and say what changed since the run before.

`ray job submit --working-dir . -- python jobs/nightly_rescore.py --config CONFIG`; only what is new is read and judged.
"""

from __future__ import annotations

import sys

from s2r_ray.cli import main

sys.argv[1:1] = ["run", "--diff"]
main()
