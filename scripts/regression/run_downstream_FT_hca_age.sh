#!/usr/bin/env bash
# Fine-tune on age, HCP-Aging; the parameters are in configs/downstream/hca_age.yaml.
#   bash scripts/regression/run_downstream_FT_hca_age.sh --load_path CHECKPOINT [flags]
# To rehearse: python scripts/make_synthetic_cohort.py hca, and add --data_path data/synthetic_hca
set -euo pipefail
source "$(dirname "$0")/../environment.sh"
exec "$VENV/bin/python" downstream_eval.py --config hca_age --downstream_task fine_tune "$@"
