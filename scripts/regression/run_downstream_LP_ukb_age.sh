#!/bin/sh
# Linear probe of age, UK Biobank; the parameters are in configs/downstream/ukb_age.yaml.
#   sh scripts/regression/run_downstream_LP_ukb_age.sh --load_path CHECKPOINT [flags]
# To rehearse: python scripts/make_synthetic_cohort.py ukb, and add --data_path data/synthetic_ukb
. "$(dirname "$0")/../downstream.sh"
