# Everything a newcomer needs: `make run` tries the whole job on a made-up pool, `make test` runs all tests.
OUT ?= out
ROWS ?= 4000
SEED ?= 0

.PHONY: run test check bench chaos

run: install-run
	.venv/bin/s2r synth --rows $(ROWS) --seed $(SEED) --out $(OUT)/pool
	.venv/bin/s2r run --pool $(OUT)/pool --preset openr1-math-220k --out $(OUT)/selection

# Tests wait for processes half of their time, so as many run at once; files in order, as the slow ones come first.
WORKERS ?= 2
test: install-test check
	.venv/bin/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

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
