#!/usr/bin/env bash
# Fine-tune on age, UK Biobank; the parameters are in configs/downstream/ukb_age.yaml.
#   bash scripts/regression/run_downstream_FT_ukb_age.sh --load_path CHECKPOINT [flags]
# To rehearse: python scripts/make_synthetic_cohort.py ukb, and add --data_path data/synthetic_ukb
set -euo pipefail
source "$(dirname "$0")/../environment.sh"
exec "$VENV/bin/python" downstream_eval.py --config ukb_age --downstream_task fine_tune "$@"
