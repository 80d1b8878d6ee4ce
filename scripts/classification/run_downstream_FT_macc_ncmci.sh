#!/bin/sh
# Fine-tune on NC against MCI, MACC; the parameters are in configs/downstream/macc_ncmci.yaml.
#   sh scripts/classification/run_downstream_FT_macc_ncmci.sh --load_path CHECKPOINT [flags]
# To rehearse: python scripts/make_synthetic_cohort.py macc, and add --data_path data/synthetic_macc
. "$(dirname "$0")/../downstream.sh"
