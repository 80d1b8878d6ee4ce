#!/usr/bin/env bash
# Make the environment and run the tests.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by another shell, as with sh
set -euo pipefail

for argument in "$@"; do
    case "$argument" in -h | --help)
        cat <<'EOF'
usage: bash scripts/test.sh [pytest arguments, such as -k masks]

Makes the environment and runs the tests on all cores, without the slow ones.

EOF
        exec bash "$(dirname "$0")/environment.sh" --help
        ;;
    esac
done
MORE_REQUIREMENTS=tests/requirements.txt
source "$(dirname "$0")/environment.sh"

# One thread each: the tests run on all cores at once. A worker that is done takes over tests from
# the end of another's list, so that long ones are spread and fixtures of a file are mostly made once.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$VENV/bin/python" -m pytest -n auto --dist worksteal -m "not slow and not brainmarks and not mutants" "$@"
