"""Rank and publish anew from what is stored, with other weights or budgets: no judge, no GPU.

`ray job submit --working-dir . -- python jobs/select_pool.py --out OUT --weight difficulty=0.5 --weight length=0.5`.
The name is not `select`: a script's folder comes first on Python's path, where it would hide the standard library's.
"""

from __future__ import annotations

import sys

from s2r_ray.cli import main

sys.argv[1:1] = ["select"]
main()
