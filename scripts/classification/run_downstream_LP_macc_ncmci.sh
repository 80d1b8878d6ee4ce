#!/usr/bin/env bash
# Linear probe of NC against MCI, MACC; the parameters are in configs/downstream/macc_ncmci.yaml.
#   bash scripts/classification/run_downstream_LP_macc_ncmci.sh --load_path CHECKPOINT [flags]
# To rehearse: python scripts/make_synthetic_cohort.py macc, and add --data_path data/synthetic_macc
set -euo pipefail
source "$(dirname "$0")/../environment.sh"
exec "$VENV/bin/python" downstream_eval.py --config macc_ncmci --downstream_task linear_probe "$@"
