"""The judge: what it is asked, how it is trained, how well it does. Running it is `signals/difficulty.py`."""

from __future__ import annotations

from pathlib import Path

EMBEDDED_JUDGE = Path(__file__).parent / "embedded"
"""The small judge that ships in the package; its README.md is its model card."""
