"""How often a trace thinks again: words such as «wait» and «alternatively»."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

RETHINKING_WORDS = (
    *("wait", "alternatively", "maybe", "however", "hmm"),
    *("等等", "等一下", "或者", "也许", "或许", "不过", "然而", "嗯"),
)
"""In lower case. The first four are Select2Reason's, as summarised; the fifth and the Chinese ones are this project's.

Words that are ordinary far more often than a second thought (but, so, actually; 但是, 可能) are not in it.
"""


def count_rethinking(texts: Sequence[str], words: Sequence[str] = RETHINKING_WORDS) -> npt.NDArray[np.int32]:
    """How many of these words each text has: int32[len(texts)], in order.

    Upper and lower case of the letters A to Z are the same. A word of letters A to Z counts where it stands alone: with
    no such letter, digit or underscore on either side («Wait,» counts, «waiting» does not). Other words count wherever
    they stand, for Chinese has no spaces. Counted from left to right; no character counts twice.
    """
    alone = [re.escape(word) for word in words if word.isascii()]
    anywhere = [re.escape(word) for word in words if not word.isascii()]
    pattern = "|".join(([rf"\b(?:{'|'.join(alone)})\b"] if alone else []) + anywhere)
    lower = pc.ascii_lower(pa.array(texts, pa.large_string()))
    found: npt.NDArray[np.int32] = pc.count_substring_regex(lower, pattern).to_numpy().astype(np.int32)
    return found
