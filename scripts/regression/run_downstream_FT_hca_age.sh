#!/bin/sh
# Fine-tune on age, HCP-Aging; the parameters are in configs/downstream/hca_age.yaml.
#   sh scripts/regression/run_downstream_FT_hca_age.sh --load_path CHECKPOINT [flags]
# To rehearse: python scripts/make_synthetic_cohort.py hca, and add --data_path data/synthetic_hca
. "$(dirname "$0")/../downstream.sh"
