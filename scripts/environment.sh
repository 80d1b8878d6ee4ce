# Sourced by the other scripts: enters the repository and makes its Python environment.
#   PYTHON=  the interpreter to build the environment with (default: python3)
#   VENV=    where the environment is, or goes (default: .venv)
# Afterwards $VENV/bin/python has everything of requirements.txt.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
PYTHON="${PYTHON:-python3}"
VENV="${VENV:-.venv}"

if [ ! -x "$VENV/bin/python" ]; then
    if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        echo "error: $PYTHON is not Python 3.10 or newer; name one that is with PYTHON=..." >&2
        exit 2
    fi
    echo "Making the environment $VENV with $("$PYTHON" --version)"
    if ! "$PYTHON" -m venv "$VENV"; then
        echo "error: $PYTHON cannot make an environment in $VENV (is its venv module installed?)" >&2
        exit 2
    fi
fi

# Install only when the requirements are not those installed last.
if ! cmp -s requirements.txt "$VENV/installed-requirements.txt"; then
    echo "Installing requirements.txt into $VENV (once; PyTorch is large)"
    if ! "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet -r requirements.txt; then
        echo "error: the installation failed; see the lines above, then run this again" >&2
        exit 2
    fi
    cp requirements.txt "$VENV/installed-requirements.txt"
fi
