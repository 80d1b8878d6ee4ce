#!/usr/bin/env bash
# Make the environment and run the tests. Arguments go to pytest: scripts/test.sh -k masks
# PYTHON= and VENV= as in scripts/environment.sh.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

# One thread each: the tests run on all cores at once.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$VENV/bin/python" -m pytest -n auto --dist loadfile -m "not slow and not brainmarks and not mutants" "$@"
