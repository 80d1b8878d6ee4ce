#!/usr/bin/env bash
# Linear probe of neuroticism, HCP-Aging; the parameters are in configs/downstream/hca_neuroticism.yaml.
#   bash scripts/regression/run_downstream_LP_hca_neuroticism.sh --load_path CHECKPOINT [flags]
# To rehearse: python scripts/make_synthetic_cohort.py hca, and add --data_path data/synthetic_hca
set -euo pipefail
source "$(dirname "$0")/../environment.sh"
exec "$VENV/bin/python" downstream_eval.py --config hca_neuroticism --downstream_task linear_probe "$@"
