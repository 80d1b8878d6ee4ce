#!/bin/sh
# Fine-tune on sex, HCP-Aging; the parameters are in configs/downstream/hca_sex.yaml.
#   sh scripts/classification/run_downstream_FT_hca_sex.sh --load_path CHECKPOINT [flags]
# To rehearse: python scripts/make_synthetic_cohort.py hca, and add --data_path data/synthetic_hca
. "$(dirname "$0")/../downstream.sh"
