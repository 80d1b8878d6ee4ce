#!/usr/bin/env bash
# From a fresh machine to a pretrained Brain-JEPA checkpoint on real fMRI, and what it knows.
#   bash scripts/quickstart.sh [--devices cuda:0] [section.key=value ...]
# Arguments go to main.py. PYTHON= and VENV= as in scripts/environment.sh; RUN= is the run's folder.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

data=data/demo_connattractor
run="${RUN:-logs/quickstart/$(date +%Y%m%d-%H%M%S)}"

devices=() # the evaluation runs where the pretraining did
for argument in "$@"; do
    case "$argument" in
        --devices) devices=(--devices) ;;
        -* | *=*) ;;
        *) [ ${#devices[@]} -eq 1 ] && devices+=("$argument") ;;
    esac
done

echo "== 1/4 Demo data: 33 people, 98 runs x 122 ROIs"
"$VENV/bin/python" -m src.datasets.demo connattractor --out "$data"

echo "== 2/4 Functional gradients of the training people"
if [ ! -f "$data/gradients.csv" ]; then
    "$VENV/bin/python" -m src.datasets.gradients --data_dir "$data" --out "$data/gradients.csv"
fi

echo "== 3/4 Pretraining (some minutes on 2 CPU cores)"
"$VENV/bin/python" main.py --fname configs/quickstart.yaml "logging.folder=$run" "$@"

echo "== 4/4 What the representation knows, beside what needs no representation"
for task in demo_state demo_fingerprint; do
    "$VENV/bin/python" downstream_eval.py --config "$task" --load_path "$run" \
        --output_root "$run/downstream" ${devices[@]+"${devices[@]}"}
done

cat <<EOF

Where everything is
  data         $data (participants.tsv, timeseries.npy, gradients.csv)
  checkpoint   $run/jepa-latest.pth.tar
  log          $run/log.txt, $run/jepa_r0.csv, $run/revision.txt, $run/params-ijepa.yaml
  pictures     $run/masks.png, $run/loss.png
  evaluation   $run/downstream/*/*/results.md
  TensorBoard  $VENV/bin/tensorboard --logdir $run
EOF
echo
echo "What was learned: loss, and the learning monitors on held-out people, first and last"
grep -h " loss " "$run/log.txt" | sed -n '1p; $p'
grep -h "held-out people after" "$run/log.txt" | sed -n '1p; $p'
grep -hi "learning: " "$run/log.txt" | tail -n 1
