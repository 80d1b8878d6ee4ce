#!/usr/bin/env bash
# Fine-tune on the flanker score, HCP-Aging; the parameters are in configs/downstream/hca_flanker.yaml.
#   bash scripts/regression/run_downstream_FT_hca_flanker.sh --load_path CHECKPOINT [flags]
# To rehearse: python scripts/make_synthetic_cohort.py hca, and add --data_path data/synthetic_hca
set -euo pipefail
source "$(dirname "$0")/../environment.sh"
exec "$VENV/bin/python" downstream_eval.py --config hca_flanker --downstream_task fine_tune "$@"
