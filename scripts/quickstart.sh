#!/usr/bin/env bash
# From a fresh machine to a pretrained Brain-JEPA checkpoint on real fMRI, and what it knows.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by another shell, as with sh
set -euo pipefail

for argument in "$@"; do
    case "$argument" in -h | --help)
        cat <<'EOF'
usage: bash scripts/quickstart.sh [--devices DEVICE ...] [--resume] [section.key=value ...]

Makes the environment, fetches demo data (33 people, 98 runs x 122 ROIs), computes gradients,
pretrains for some minutes on 2 CPU cores and evaluates. Arguments go to main.py; the evaluation
runs on the same devices. A run that was stopped goes on with --resume and the same RUN=.

  RUN=     folder of the run (default: logs/quickstart/DATE-TIME)

EOF
        exec bash "$(dirname "$0")/environment.sh" --help
        ;;
    esac
done
source "$(dirname "$0")/environment.sh"

data=data/demo_connattractor
run="${RUN:-logs/quickstart/$(date +%Y%m%d-%H%M%S)}"

devices=() # the evaluation runs where the pretraining did
for argument in "$@"; do
    case "$argument" in
        --devices) devices=(--devices) ;;
        --devices=*) devices=(--devices "${argument#*=}") ;;
        -* | *=*) ;;
        *) [ ${#devices[@]} -eq 1 ] && devices+=("$argument") ;;
    esac
done

# Run Python such that a stop signal reaches it, whether it is sent to this script alone or, by
# CTRL-C, to everything in the terminal; this script goes on when Python has ended.
python() {
    local code=0
    set -m # a process group of its own, so that each signal comes once: from here
    "$VENV/bin/python" "$@" &
    set +m
    for signal in HUP INT TERM USR1; do trap "kill -$signal $! 2>/dev/null" "$signal"; done
    while kill -0 $! 2>/dev/null; do
        code=0
        wait $! || code=$? # a signal ends the waiting, not always what is waited for
    done
    trap - HUP INT TERM USR1
    return "$code"
}

echo "== 1/4 Demo data: 33 people, 98 runs x 122 ROIs"
python -m src.datasets.prepare.demo connattractor --out "$data"

echo "== 2/4 Functional gradients of the training people"
if [ ! -f "$data/gradients.csv" ]; then
    python -m src.datasets.prepare.gradients --data_dir "$data" --out "$data/gradients.csv"
fi

echo "== 3/4 Pretraining (some minutes on 2 CPU cores)"
code=0
python main.py --fname configs/quickstart.yaml "logging.folder=$run" "$@" || code=$?
if [ "$code" -ne 0 ]; then
    if [ "$code" -gt 128 ] && [ -f "$run/jepa-latest.pth.tar" ]; then
        case " $* " in *" --resume "*) ;; *) set -- --resume "$@" ;; esac
        [ "$VENV" = .venv ] || printf -v where 'VENV=%q ' "$VENV"
        printf -v again ' %q' "$@"
        echo "Stopped before the end, so not evaluated. Go on with:" \
            "${where:-}RUN=$(printf %q "$run") bash scripts/quickstart.sh$again" >&2
    fi
    exit "$code"
fi

evaluate() { # a task of configs/downstream, and overrides
    python downstream_eval.py --config "$1" --load_path "$run" \
        --output_root "$run/downstream" ${devices[@]+"${devices[@]}"} "${@:2}"
}
echo "== 4/4 Evaluation, beside baselines that need no model"
# What it knows about hidden signal of people it never saw first, then what that is good for. One
# untrained copy in place of three, for the ten minutes.
evaluate demo_imputation signal.untrained_seeds=1
evaluate demo_forecast signal.untrained_seeds=1
evaluate demo_state
evaluate demo_fingerprint

cat <<EOF

Files
  data         $data (participants.tsv, timeseries.npy, gradients.csv)
  checkpoint   $run/jepa-latest.pth.tar
  log          $run/log.txt, $run/jepa_r0.csv, $run/revision.txt, $run/params-ijepa.yaml
  pictures     $run/masks.png, $run/loss.png
  evaluation   $run/downstream/*/*/results.md
  TensorBoard  $VENV/bin/tensorboard --logdir $run

What was learned: loss, and the learning monitors on held-out people, first and last
EOF
grep -h " loss " "$run/log.txt" | sed -n '1p; $p'
grep -h "held-out people after" "$run/log.txt" | sed -n '1p; $p'
grep -hi "learning: " "$run/log.txt" | tail -n 1
