#!/bin/sh
# Fine-tune on amyloid status, ADNI; the parameters are in configs/downstream/adni_amyloid.yaml.
#   sh scripts/classification/run_downstream_FT_adni_amyloid.sh --load_path CHECKPOINT [flags]
# To rehearse: python scripts/make_synthetic_cohort.py adni, and add --data_path data/synthetic_adni
. "$(dirname "$0")/../downstream.sh"
