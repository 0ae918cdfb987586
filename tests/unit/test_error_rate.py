"""How much may be wrong."""

from __future__ import annotations

import pytest

from s2r_ray.candidates import ROW_FAULTS, Reason
from s2r_ray.error_rate import allowed


@pytest.mark.parametrize(
    ("rate", "total", "most"),
    [
        ("0.001", 0, 1),
        ("0.001", 1, 1),
        ("0.001", 1999, 1),
        ("0.001", 2000, 2),
        ("0.001", 220_000, 220),
        ("0.07", 100, 7),
        ("0", 1_000_000, 0),
        ("0.000", 10, 0),
        ("1", 10, 10),
    ],
)
def test_allowed(rate: str, total: int, most: int) -> None:
    """Catches: a small pool failed for one row, a rate of 0 that lets one pass, and 0.07 * 100 rounded to 7.000…1."""
    assert allowed(rate, total) == most


def test_decisions_are_no_errors() -> None:
    """Catches: a pool failed because most of it is unverified, which is what pools are like."""
    decisions = {Reason.UNVERIFIED, Reason.INCOMPLETE, Reason.FINISH_REASON, Reason.OVER_CUTOFF, Reason.NOT_CHOSEN}
    decisions |= {Reason.DUPLICATE_SAMPLE, Reason.FILTERED, Reason.UNREADABLE_FILE}
    assert set(Reason) == decisions | set(ROW_FAULTS)
