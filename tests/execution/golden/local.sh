#!/usr/bin/env bash
#
# Weak and strong scaling of data-parallel training
# 1 case on This machine:
#   scaling-weak-ranks_per_node_2 (id a8f6f40a4ab49c78): 1 node x 2 ranks, 10 min at most
# Made by gfm-harness VERSION with `harness run scaling --system local`.
# By hand: `bash jobs/scaling-weak-ranks_per_node_2-54280785.sh`, or with the word `again` to have ended cases run anew.
# Each case writes events.jsonl, stdout, stderr and exit_code into its folder; a case that has ended is skipped.
# shellcheck disable=SC1091  # environments exist only where the job runs
set -euo pipefail

campaign=${GFM_HARNESS_CAMPAIGN:-/campaign}
job=scaling-weak-ranks_per_node_2-54280785
script=${BASH_SOURCE[0]}
[[ $script = /* ]] || script=$PWD/$script

job_id="$(uname -n)-$$"
export MASTER_ADDR=127.0.0.1 MASTER_PORT=$((20000 + $$ % 10000))
# The ranks belong to this job, whatever allocation or rank of another launcher it is started in.
unset "${!SLURM_@}" "${!PMI_@}" "${!PMIX_@}" "${!PALS_@}" "${!OMPI_COMM_WORLD_@}" "${!MPI_LOCAL@}" "${!HYDRA_@}" \
    PBS_NODEFILE PE_HOSTFILE RANK LOCAL_RANK WORLD_SIZE
export HYDRA_LAUNCHER=fork I_MPI_HYDRA_BOOTSTRAP=fork
rerun=${1:-}
exit_status=0
cd "$campaign"
if ! [ -e "jobs/$job.sh" ]; then
    echo "error: $campaign is not the folder of this job (GFM_HARNESS_CAMPAIGN names another than the script)" >&2
    exit 2
fi
# In containers a user may have no name or home, which libraries need.
export USER=${USER:-user-$UID} LOGNAME=${LOGNAME:-user-$UID}
if ! [ -w "${HOME:-}" ]; then
    scratch=${TMPDIR:-/tmp}/gfm-harness-$UID
    (umask 077 && mkdir -p "$scratch")
    [ -O "$scratch" ] || scratch=$(mktemp -d)
    export HOME=${HOME:-$scratch} XDG_CACHE_HOME=${XDG_CACHE_HOME:-$scratch} MPLCONFIGDIR=${MPLCONFIGDIR:-$scratch}
    export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$scratch/triton}
fi

absent=
for program in cat cp cut date grep head mkdir mv rm sleep sort timeout uname wc ; do
    command -v "$program" > /dev/null || absent+=" $program"
done
if [ -n "$absent" ]; then
    echo "error: programs that this job needs are not here:$absent" >&2
    exit 69
fi
export OMP_NUM_THREADS=1
export MALLOC_MMAP_MAX_=0
export MALLOC_TRIM_THRESHOLD_=1000000000000
export MALLOC_TOP_PAD_=268435456
export OMP_WAIT_POLICY=PASSIVE

# One run of this job at a time; the lock lives as long as any process of the job. (A query of the job's state holds it
# for an instant: hence the wait.) On a file system without locks, a file names the shell that runs the job.
exec 9>> "jobs/$job.lock"
held=$campaign/jobs/$job.lock.held
taken=0
hold() { (set -o noclobber && echo "$(uname -n) $$ $(date +%s)" > "$held") 2> /dev/null; }
flock -w 2 9 2> /dev/null || taken=$?
if [ "$taken" -gt 1 ]; then
    taken=0
    if [ -s "$held" ] && read -r host shell _ < "$held" && [ "$host" = "$(uname -n)" ] && ! kill -0 "$shell" 2> /dev/null
    then
        rm -f "$held"
    fi
    hold || taken=1
fi
if [ "$taken" -eq 1 ]; then
    echo "error: this job is already running here" >&2
    exit 3
fi
healthy_nodes=1
same_nodes() { true; }
first() { true; }
keep_nodes() { uname -n > nodes; }
PATH=/environment/bin:$PATH
# Python imports nothing from the current folder: the files of a case may come from elsewhere.
export PYTHONSAFEPATH=1
if [ -n "${PYTHONPATH:-}" ]; then
    IFS=: read -ra entries <<< "$PYTHONPATH"
    PYTHONPATH=
    for entry in "${entries[@]}"; do
        if [[ $entry = /* ]]; then PYTHONPATH+=${PYTHONPATH:+:}$entry; fi
    done
fi
python=/environment/bin/python

# Telemetry: the first rank of every node, and every rank with a GPU of its own, samples into its case's folder.
export GFM_HARNESS_SAMPLER_S=1

"$python" -P -m harness.host.provenance > "jobs/$job.provenance.json" || echo '{}' > "jobs/$job.provenance.json"

# run_case FOLDER "DEPENDENCIES" NODES SECONDS COMMAND...: run one case and write its exit code and seconds.
run_case() {
    local case=$1 dependencies=$2 node_count=$3 limit=$4 status=0 started=$SECONDS dependency
    shift 4
    cd "$campaign/$case"
    if [ "$rerun" = again ] && ! grep -Fqx "$job_id" claim 2> /dev/null; then rm -f exit_code claim; fi
    if [ -e exit_code ]; then
        echo "$case: has ended before"
        return
    fi
    for dependency in $dependencies; do
        if [ "$(head -n 1 "$campaign/$dependency/exit_code" 2> /dev/null)" != 0 ]; then
            echo "$case: not run, since $dependency is not done" >&2
            exit_status=75
            return
        fi
    done
    if [ "$node_count" -gt "$healthy_nodes" ]; then
        echo "$case: not run, since it takes $node_count nodes and $healthy_nodes passed the check" >&2
        exit_status=75
        return
    fi
    # The job that creates this file runs the case; any other job skips it. A full disk leaves the file empty.
    if [ -e claim ] && ! [ -s claim ]; then sleep 1; [ -s claim ] || rm -f claim; fi
    if ! (set -o noclobber && echo "$job_id" > claim) 2> /dev/null && [ "$(cat claim)" != "$job_id" ]; then
        echo "$case: not run, since job $(cat claim) has it" >&2
        exit_status=75
        return
    fi
    if ! [ "$script" -ef job.sh ]; then cp "$script" job.sh; fi
    cp "$campaign/jobs/$job.provenance.json" provenance.json
    echo "$case: started $(date '+%F %T')"
    while true; do
        status=0
        keep_nodes "$node_count"
        timeout -k 60 "$limit" "$@" >> stdout 2>> stderr < /dev/null || status=$?
        if [ "$status" -eq 0 ] || [ "$status" -eq 124 ] || same_nodes; then break; fi
        if [ "$node_count" -gt "$healthy_nodes" ]; then
            echo "$case: lost with a node, and left for another job" >&2
            exit_status=75
            return
        fi
        echo "$case: lost with a node, and started again on others"
        first "$node_count" > /dev/null
    done
    if [ "$status" -eq 124 ]; then
        echo "stopped after $limit s, the time this case may take" >> stderr
    fi
    printf '%s\n%s\n' "$status" "$((SECONDS - started))" > exit_code.part
    mv exit_code.part exit_code
    echo "$case: exit code $status after $((SECONDS - started)) s"
    if [ "$status" -ne 0 ]; then exit_status=1; fi
}

run_case scaling-weak-ranks_per_node_2-a8f6f40a4a '' 1 600 \
    mpiexec -n 2 \
    "$python" -P -m harness.reference "$campaign"/scaling-weak-ranks_per_node_2-a8f6f40a4a

rm -f "$held"
exit "$exit_status"
