#!/bin/sh
# Makes the lock files anew; needs uv (`pip install uv`). Run: requirements/lock.sh
# Where torch's CPU build comes from: UV_FIND_LINKS (a folder of wheels) if set, else PyTorch's own index.
set -eu
cd "$(dirname "$0")"
[ -n "${UV_FIND_LINKS:-}" ] || export UV_INDEX="https://download.pytorch.org/whl/cpu" UV_INDEX_STRATEGY=unsafe-best-match
compile() { uv pip compile -q --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-annotate \
  --no-header --no-emit-index-url --no-emit-find-links --upgrade "$@"; }
compile cpu.in --excludes excluded-cpu.txt -o cpu.lock
# Tests run on the CPU engine; dev.lock holds only what cpu.lock does not, at versions that go with it.
compile dev.in --excludes excluded-cpu.txt -c cpu.lock -o dev-all.lock
grep -vxFf cpu.lock dev-all.lock > dev.lock
rm dev-all.lock
UV_FIND_LINKS='' UV_INDEX='' compile gpu.in --excludes excluded-gpu.txt -o gpu.lock
