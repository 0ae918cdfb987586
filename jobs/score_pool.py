"""Index, judge, rank and publish: `ray job submit --working-dir . -- python jobs/score_pool.py --config CONFIG`."""

from __future__ import annotations

import sys

from s2r_ray.cli import main

sys.argv[1:1] = ["run"]
main()
