#!/usr/bin/env bash
# Fine-tune on amyloid status, ADNI; the parameters are in configs/downstream/adni_amyloid.yaml.
#   bash scripts/classification/run_downstream_FT_adni_amyloid.sh --load_path CHECKPOINT [flags]
# To rehearse: python scripts/make_synthetic_cohort.py adni, and add --data_path data/synthetic_adni
set -euo pipefail
source "$(dirname "$0")/../environment.sh"
exec "$VENV/bin/python" downstream_eval.py --config adni_amyloid --downstream_task fine_tune "$@"
