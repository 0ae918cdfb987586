"""Rank again what is stored, with other weights or budgets: no model, no GPU.

`ray job submit --working-dir . -- python jobs/select_pool.py --config CONFIG`
"""

from __future__ import annotations

import sys

from s2r_ray.cli import main

sys.argv[1:1] = ["select"]
main()
