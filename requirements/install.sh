#!/bin/sh
# Installs locked sets into .venv: requirements/install.sh run|test
# With an NVIDIA GPU the run set is gpu.lock, else cpu.lock. A set that is in place is not installed again.
set -eu
cd "$(dirname "$0")/.."
wanted=${1:?expected: run or test}
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: $python is $("$python" -V 2>&1); Python 3.11 or newer is needed (set PYTHON=/path/to/python3.11)" >&2
  exit 2
}
[ -x .venv/bin/python ] || "$python" -m venv .venv || {
  echo "error: $python cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2
  exit 2
}

if nvidia-smi -L >/dev/null 2>&1; then set=gpu; else set=cpu; fi
locks=$set.lock
[ "$wanted" = run ] || locks="$set.lock dev.lock"

for lock in $locks; do
  mark=".venv/.installed-$lock"
  cmp -s "requirements/$lock" "$mark" && continue
  echo "installing requirements/$lock into .venv (once; some minutes)" >&2
  torch=$(grep '^torch==' "requirements/$lock" || true)
  if [ "$set" = cpu ] && [ -n "$torch" ]; then
    .venv/bin/pip install -q --disable-pip-version-check --no-deps "$torch" 2>/dev/null ||
      .venv/bin/pip install -q --disable-pip-version-check --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch" 2>/dev/null || {
      echo "error: $torch found neither where pip looks nor on https://download.pytorch.org/whl/cpu; add it with PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL" >&2
      exit 1
    }
  fi
  .venv/bin/pip install -q --disable-pip-version-check --no-deps -r "requirements/$lock"
  cp "requirements/$lock" "$mark"
done

[ -x .venv/bin/s2r ] || .venv/bin/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
