#!/bin/sh
# Fine-tune on depression, CamCAN; the parameters are in configs/downstream/camcan_depression.yaml.
#   sh scripts/classification/run_downstream_FT_camcan_depression.sh --load_path CHECKPOINT [flags]
# To rehearse: python scripts/make_synthetic_cohort.py camcan, and add --data_path data/synthetic_camcan
. "$(dirname "$0")/../downstream.sh"
