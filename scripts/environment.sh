# Sourced by the other scripts: enters the repository and makes its Python environment.
# Afterwards $VENV/bin/python has everything of requirements.txt and of MORE_REQUIREMENTS.
# For any shell. bash knows where a sourced file is; under others whoever sources it enters the
# repository before.

environment_help() {
    cat <<'TEXT'
Environment variables
  PYTHON=  the interpreter to build the environment with (default: python3)
  VENV=    where the environment is, or goes (default: .venv)

The environment takes 6.9 GB of disk with the CUDA build of PyTorch, which pip installs on Linux
unless another is there already. To have the CPU build, and less than 3 GB, install it first:
  python3 -m venv .venv
  .venv/bin/python -m pip install ...   the command that pytorch.org gives for "CPU"
TEXT
}

case "${BASH_SOURCE:-$0}" in
    environment.sh | */environment.sh)
        if [ "${BASH_SOURCE:-$0}" = "$0" ] && [ "${1:-}" = --help ]; then
            environment_help
            exit
        fi
        cd "$(dirname "${BASH_SOURCE:-$0}")/.." || exit 1
        ;;
esac
PYTHON="${PYTHON:-python3}"
VENV="${VENV:-.venv}"

if [ ! -x "$VENV/bin/python" ]; then
    environment_help
    echo
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

# Install a file only when it is not the one installed last.
for requirements in requirements.txt ${MORE_REQUIREMENTS:-}; do
    installed="$VENV/installed-$(printf %s "$requirements" | tr / -)"
    cmp -s "$requirements" "$installed" && continue
    echo "Installing $requirements into $VENV (once; $(df -Ph "$VENV" | awk 'NR == 2 { print $4 }') free there)"
    if ! "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet -r "$requirements"; then
        echo "error: the installation failed; see the lines above, then run this again" >&2
        exit 2
    fi
    cp "$requirements" "$installed"
done
