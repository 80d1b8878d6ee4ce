#!/usr/bin/env bash
# Fine-tune on depression, CamCAN; the parameters are in configs/downstream/camcan_depression.yaml.
#   bash scripts/classification/run_downstream_FT_camcan_depression.sh --load_path CHECKPOINT [flags]
# To rehearse: python scripts/make_synthetic_cohort.py camcan, and add --data_path data/synthetic_camcan
set -euo pipefail
source "$(dirname "$0")/../environment.sh"
exec "$VENV/bin/python" downstream_eval.py --config camcan_depression --downstream_task fine_tune "$@"
