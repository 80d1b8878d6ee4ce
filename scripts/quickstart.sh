#!/usr/bin/env bash
# From a fresh machine to a pretrained Brain-JEPA checkpoint on real fMRI.
#   bash scripts/quickstart.sh [--devices cuda:0] [section.key=value ...]
# Arguments go to main.py. PYTHON= and VENV= as in scripts/environment.sh.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

data=data/demo_connattractor
run="${RUN:-logs/quickstart/$(date +%Y%m%d-%H%M%S)}"

echo "== 1/3 Demo data: 33 people, 98 runs x 122 ROIs"
"$VENV/bin/python" -m src.datasets.demo connattractor --out "$data"

echo "== 2/3 Functional gradients of the training people"
if [ ! -f "$data/gradients.csv" ]; then
    "$VENV/bin/python" -m src.datasets.gradients --data_dir "$data" --out "$data/gradients.csv"
fi

echo "== 3/3 Pretraining (some minutes on 2 CPU cores)"
"$VENV/bin/python" main.py --fname configs/quickstart.yaml "logging.folder=$run" "$@"

cat <<EOF

Where everything is
  data         $data (participants.tsv, timeseries.npy, gradients.csv)
  checkpoint   $run/jepa-latest.pth.tar
  log          $run/log.txt, $run/jepa_r0.csv, $run/revision.txt, $run/params-ijepa.yaml
  pictures     $run/masks.png, $run/loss.png
  TensorBoard  $VENV/bin/tensorboard --logdir $run
EOF
