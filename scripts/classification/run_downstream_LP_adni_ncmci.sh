#!/bin/sh
# Linear probe of NC against MCI, ADNI; the parameters are in configs/downstream/adni_ncmci.yaml.
#   sh scripts/classification/run_downstream_LP_adni_ncmci.sh --load_path CHECKPOINT [flags]
# To rehearse: python scripts/make_synthetic_cohort.py adni, and add --data_path data/synthetic_adni
. "$(dirname "$0")/../downstream.sh"
