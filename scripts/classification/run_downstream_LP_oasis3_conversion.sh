#!/bin/sh
# Linear probe of conversion to AD, OASIS-3; the parameters are in configs/downstream/oasis3_conversion.yaml.
#   sh scripts/classification/run_downstream_LP_oasis3_conversion.sh --load_path CHECKPOINT [flags]
# To rehearse: python scripts/make_synthetic_cohort.py oasis3, and add --data_path data/synthetic_oasis3
. "$(dirname "$0")/../downstream.sh"
