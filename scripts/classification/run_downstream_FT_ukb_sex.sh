#!/bin/sh
# Fine-tune on sex, UK Biobank; the parameters are in configs/downstream/ukb_sex.yaml.
#   sh scripts/classification/run_downstream_FT_ukb_sex.sh --load_path CHECKPOINT [flags]
# To rehearse: python scripts/make_synthetic_cohort.py ukb, and add --data_path data/synthetic_ukb
. "$(dirname "$0")/../downstream.sh"
