#!/usr/bin/env bash
# Linear probe of sex, UK Biobank; the parameters are in configs/downstream/ukb_sex.yaml.
#   bash scripts/classification/run_downstream_LP_ukb_sex.sh --load_path CHECKPOINT [flags]
# To rehearse: python scripts/make_synthetic_cohort.py ukb, and add --data_path data/synthetic_ukb
set -euo pipefail
source "$(dirname "$0")/../environment.sh"
exec "$VENV/bin/python" downstream_eval.py --config ukb_sex --downstream_task linear_probe "$@"
