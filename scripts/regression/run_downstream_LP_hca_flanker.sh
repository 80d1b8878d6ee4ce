#!/bin/sh
# Linear probe of the flanker score, HCP-Aging; the parameters are in configs/downstream/hca_flanker.yaml.
#   sh scripts/regression/run_downstream_LP_hca_flanker.sh --load_path CHECKPOINT [flags]
# To rehearse: python scripts/make_synthetic_cohort.py hca, and add --data_path data/synthetic_hca
. "$(dirname "$0")/../downstream.sh"
