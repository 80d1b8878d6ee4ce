#!/usr/bin/env bash
# Linear probe of conversion to AD, OASIS-3; the parameters are in configs/downstream/oasis3_conversion.yaml.
#   bash scripts/classification/run_downstream_LP_oasis3_conversion.sh --load_path CHECKPOINT [flags]
# To rehearse: python scripts/make_synthetic_cohort.py oasis3, and add --data_path data/synthetic_oasis3
set -euo pipefail
source "$(dirname "$0")/../environment.sh"
exec "$VENV/bin/python" downstream_eval.py --config oasis3_conversion --downstream_task linear_probe "$@"
