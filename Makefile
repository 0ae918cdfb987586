# Everything a newcomer needs: `make run` tries the whole job on a made-up pool, `make test` runs all tests.
OUT ?= out
ROWS ?= 4000
SEED ?= 0

.PHONY: run test check bench chaos

run: install-run
	.venv/bin/s2r synth --rows $(ROWS) --seed $(SEED) --out $(OUT)/pool
	.venv/bin/s2r run --pool $(OUT)/pool --preset openr1-math-220k --out $(OUT)/selection

test: install-test check
	.venv/bin/python -m pytest -q

check: install-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# Kills whatever a run consists of, so many times; SEED gives other moments.
KILLS ?= 500
chaos: install-test
	KILLS=$(KILLS) .venv/bin/python -m pytest -q -s --timeout=0 tests/faults/test_kills.py

bench: install-test
	.venv/bin/python -m tests.benchmarks

.PHONY: install-run install-test
install-run install-test: install-%:
	@requirements/install.sh $*
