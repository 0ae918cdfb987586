"""The metrics of a run, by name without Ray's prefix `ray_` and, for counters, without `_total`."""

from __future__ import annotations

METRICS = {
    "s2r_rows_indexed": "Rows of the pool that were read and indexed",
    "s2r_rows_excluded": "Rows left out, by reason",
    "s2r_questions_judged": "Questions judged, by signal",
    "s2r_questions_reused": "Questions whose score was stored already, by signal",
    "s2r_prompts": "Prompts given to the engine, by signal",
    "s2r_prefill_tokens": "Tokens of these prompts, by signal",
    "s2r_judge_seconds": "Seconds of judge workers, by signal and state: loading, busy, idle",
    "s2r_store_retries": "Requests to the object store that were sent again",
    "s2r_last_progress_timestamp_seconds": "When a stage last got on, in seconds since 1970",
}
