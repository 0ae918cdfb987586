"""`python -m s2r_ray` is the `s2r` command."""

from s2r_ray.cli import main

main()
