"""Select2Reason on Ray: score a pool of reasoning traces and pick the few per cent to train on."""

from __future__ import annotations

__version__ = "0.1.0"
