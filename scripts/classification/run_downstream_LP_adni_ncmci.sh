#!/usr/bin/env bash
# Linear probe of NC against MCI, ADNI; the parameters are in configs/downstream/adni_ncmci.yaml.
#   bash scripts/classification/run_downstream_LP_adni_ncmci.sh --load_path CHECKPOINT [flags]
# To rehearse: python scripts/make_synthetic_cohort.py adni, and add --data_path data/synthetic_adni
set -euo pipefail
source "$(dirname "$0")/../environment.sh"
exec "$VENV/bin/python" downstream_eval.py --config adni_ncmci --downstream_task linear_probe "$@"
