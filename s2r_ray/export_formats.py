"""What a selection becomes for those who train on it: file, columns, and what stands beside the data.

The text to learn is what was ranked, to the letter. Where a pool keeps the reasoning apart from the answer, it comes
first, between `<think>` and `</think>`: the form of DeepSeek-R1's own traces, of `generations` and `messages` in
open-r1/OpenR1-Math-220k, and of the reasoning templates of LLaMA-Factory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from s2r_ray.pool_rows import Fetched
from s2r_ray.tables import written

_TURNS = ("user", "assistant")
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


@dataclass(frozen=True)
class Format:
    """How one target wants its data.

    Attributes:
        suffix: of the data file, `.jsonl` or `.parquet`.
        rows: from what was fetched to the target's columns, [n] to [n].
        originals: whether all columns of the pool are fetched.
        numbers: whether the columns of the manifest come first.
    """

    suffix: str
    rows: Callable[[Fetched], pa.Table]
    originals: bool = False
    numbers: bool = False


def _alpaca(fetched: Fetched) -> pa.Table:
    return fetched.samples.select(["question", "response"]).rename_columns(["instruction", "output"])


def _messages(fetched: Fetched) -> pa.Table:
    return pa.table([_exchange(fetched.samples)], ["messages"])


def _original_columns(fetched: Fetched) -> pa.Table:
    """All columns of the pool; `messages` is the exchange that was ranked, whatever the pool has there."""
    rows = fetched.originals
    if rows is None:
        raise ValueError("fetched without the original columns")
    messages = _exchange(fetched.samples)
    if "messages" in rows.column_names:
        return rows.set_column(rows.column_names.index("messages"), "messages", messages)
    return rows.append_column("messages", messages)


def _texts(fetched: Fetched) -> pa.Table:
    return fetched.samples


def _exchange(samples: pa.Table) -> pa.Array:
    """Question and response as two turns: list of {role, content}, [n]."""
    count = samples.num_rows
    texts = pa.concat_arrays([samples[name].combine_chunks() for name in ("question", "response")])
    content = texts.take(pa.array(np.arange(2 * count).reshape(2, count).T.reshape(-1)))
    roles = pa.array(_TURNS * count, pa.string())
    turns = pa.StructArray.from_arrays([roles, content], fields=list(_MESSAGES.value_type))
    return pa.ListArray.from_arrays(pa.array(np.arange(0, 2 * count + 1, 2, dtype=np.int32)), turns)


FORMATS = {
    "llamafactory": Format(".jsonl", _alpaca),
    "trl": Format(".parquet", _messages),
    "openr1": Format(".parquet", _original_columns, originals=True),
    "jsonl": Format(".jsonl", _texts, numbers=True),
    "parquet": Format(".parquet", _texts, numbers=True),
}
"""Every target by name."""


@contextmanager
def open_writer(sink: IO[bytes], suffix: str, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """A function that appends tables of this schema: as lines of JSON, or as row groups of Parquet."""
    if suffix == ".jsonl":
        yield lambda rows: sink.writelines(
            orjson.dumps(row, default=str, option=orjson.OPT_APPEND_NEWLINE) for row in rows.to_pylist()
        )
        return
    with pq.ParquetWriter(sink, schema, **written(schema)) as writer:
        yield writer.write_table


# --- LLaMA-Factory --------------------------------------------------------------------------------


def dataset_entry(file_name: str) -> dict[str, Any]:
    """The entry of `dataset_info.json` for a file of the Alpaca form (data/README.md of hiyouga/LLaMA-Factory)."""
    return {"file_name": file_name, "columns": {"prompt": "instruction", "response": "output"}}


def training_file(dataset: str, model: str, cutoff_tokens: int) -> str:
    """A training file for `llamafactory-cli train`, with the settings of the paper.

    They are those of qwen2.5_full_sft.yaml in IDEA-FinAI/Select2Reason, but for what depends on the machine.

    Args:
        dataset: its name in dataset_info.json.
        model: the student.
        cutoff_tokens: most tokens of question and response together.
    """
    return f"""\
# Full fine-tuning with the settings of Select2Reason (qwen2.5_full_sft.yaml in github.com/IDEA-FinAI/Select2Reason).
# In the folder of this file: llamafactory-cli train {dataset}.yaml

model_name_or_path: {model}  # your student; published: Qwen2.5-Instruct of 0.5B to 7B

stage: sft
do_train: true
finetuning_type: full
# deepspeed: examples/deepspeed/ds_z3_config.json  # as published; a file of LLaMA-Factory's repository

dataset: {dataset}
dataset_dir: .
template: qwen  # for other students another one
cutoff_len: {cutoff_tokens}
# disable_shuffling: true  # to train in the order of the file

per_device_train_batch_size: 1
gradient_accumulation_steps: 4
learning_rate: 5.0e-5
num_train_epochs: 5.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
gradient_checkpointing: true
# flash_attn: fa2  # as published
# enable_liger_kernel: true  # as published

output_dir: saves/{dataset}
logging_steps: 10
save_strategy: epoch  # published: at the end only
"""
