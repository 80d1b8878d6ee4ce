# Sourced by scripts/*/run_downstream_*.sh, under any shell: runs the task and protocol of its name.
#   run_downstream_FT_hca_sex.sh   fine_tune on configs/downstream/hca_sex.yaml
#   run_downstream_LP_hca_sex.sh   linear_probe on it
set -eu
name=$(basename "$0" .sh)
case "$name" in
    run_downstream_FT_*) protocol=fine_tune ;;
    run_downstream_LP_*) protocol=linear_probe ;;
    *)
        echo "error: $0: sourced by a script run_downstream_FT_TASK.sh or run_downstream_LP_TASK.sh" >&2
        exit 2
        ;;
esac
cd "$(dirname "$0")/../.."
. scripts/environment.sh
exec "$VENV/bin/python" downstream_eval.py \
    --config "${name#run_downstream_??_}" --downstream_task "$protocol" "$@"
