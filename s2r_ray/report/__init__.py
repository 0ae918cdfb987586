"""report.html: what was selected from a pool, and how far to trust it."""
