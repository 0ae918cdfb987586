"""What programs import: there, lazy, and with errors that speak."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import s2r_ray

RUNS = ("20260101T000000.000Z-aaaaaaaa", "20260102T000000.000Z-bbbbbbbb")


@pytest.fixture
def out(tmp_path: Path) -> str:
    """An output place with two finished runs of one budget."""
    for position, run in enumerate(RUNS):
        folder = tmp_path / "runs" / run
        (folder / "manifests").mkdir(parents=True)
        rows = pl.DataFrame({"position": [1, 2], "sample_id": ["a", f"b{position}"]})
        rows.write_parquet(folder / "manifests" / "top-2.5pct.parquet")
        (folder / "baselines" / "random").mkdir(parents=True)
        rows.reverse().write_parquet(folder / "baselines" / "random" / "top-2.5pct.parquet")
        record = {"run_id": run, "budgets": {"2.5": 2}, "baselines": {"random": "baselines/random"}}
        (folder / "run.json").write_text(json.dumps(record))
    (tmp_path / "latest.json").write_text(json.dumps({"run_id": RUNS[1], "path": f"runs/{RUNS[1]}"}))
    return str(tmp_path)


def test_importing_costs_nothing() -> None:
    """Catches: `import s2r_ray` that takes seconds, or a name in `__all__` that nothing stands behind."""
    code = "import sys, s2r_ray; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"ray", "pyarrow", "numpy", "torch", "pydantic"} & set(done.stdout.split())
    for name in s2r_ray.__all__:
        assert getattr(s2r_ray, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        _ = s2r_ray.rum


def test_a_run_is_read(out: str) -> None:
    """Catches: another run than the newest, a budget that is only found as it was written, and rows out of order."""
    run = s2r_ray.open_run(out)
    assert (run.id, run.budgets) == (RUNS[1], {"2.5": 2})
    for budget in (2.5, "2.5%", "2.50"):
        assert run.manifest(budget)["sample_id"].to_pylist() == ["a", "b1"]
    assert run.manifest("2.5", ["position"]).column_names == ["position"]
    assert run.manifest("2.5", baseline="random")["sample_id"].to_pylist() == ["b1", "a"]
    assert s2r_ray.open_run(out, "20260101").manifest("2.5")["sample_id"].to_pylist() == ["a", "b0"]


def test_what_is_not_there(out: str, tmp_path: Path) -> None:
    """Catches: a traceback about a missing file in place of what there is."""
    with pytest.raises(s2r_ray.UsageError, match=r"no budget of 10 %; it has 2\.5 %"):
        s2r_ray.open_run(out).manifest(10)
    with pytest.raises(s2r_ray.UsageError, match="no column nope; it has position, sample_id"):
        s2r_ray.open_run(out).manifest(2.5, ["nope"])
    with pytest.raises(s2r_ray.UsageError, match="no baseline longest; it has random"):
        s2r_ray.open_run(out).manifest(2.5, baseline="longest")
    with pytest.raises(s2r_ray.UsageError, match="budget"):
        s2r_ray.open_run(out).manifest("much")
    with pytest.raises(s2r_ray.UsageError, match="no run 2027"):
        s2r_ray.open_run(out, "2027")
    with pytest.raises(s2r_ray.UsageError, match="no finished run"):
        s2r_ray.open_run(str(tmp_path / "none"))
