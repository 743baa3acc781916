#!/usr/bin/env bash
# Runs the tests in a virtual environment of their own: bash scripts/test.sh [--nightly] [pytest arguments]
#
# Without --nightly the slow suites are left out. Tests that read ../shared (SPECJAX_DATA_DIR, SPECJAX_GOLDEN_DIR) skip
# with a reason where it is absent. Two workers.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh test
if [[ "${1:-}" == --nightly ]]; then
  shift
  exec python -m pytest tests -n 2 -m "nightly or not nightly" "$@"
fi
exec python -m pytest tests -n 2 -m "not nightly" "$@"
