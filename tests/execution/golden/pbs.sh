#!/usr/bin/env bash
#PBS -N scaling-weak-nodes_4-2c7b9928
#PBS -S /bin/bash
#PBS -l select=8:ncpus=2:mpiprocs=2
#PBS -l place=scatter:excl
#PBS -l walltime=00:22:00
#PBS -j oe
#PBS -o "/campaign/jobs/scaling-weak-nodes_4-2c7b9928.log"
#PBS -r y
#PBS -A abc123
#
# Weak and strong scaling of data-parallel training
# 2 cases, one after another, on A PBS cluster:
#   scaling-weak-nodes_4 (id db89bde36a96133b): 4 nodes x 2 ranks, 10 min at most
#   scaling-weak-nodes_8 (id 9859d4fdef3e8f26): 8 nodes x 2 ranks, 10 min at most
# Written by gfm-harness VERSION with `harness run scaling --system pbs`.
# To submit it by hand: `qsub jobs/scaling-weak-nodes_4-2c7b9928.sh`, or with `-v GFM_HARNESS_AGAIN=again` to repeat the cases that have ended.
# Each case writes events.jsonl, stdout, stderr and exit_code into its folder; a case that has ended is skipped.
# shellcheck disable=SC1091  # environments exist only where the job runs
set -euo pipefail

campaign=${GFM_HARNESS_CAMPAIGN:-/campaign}
job=scaling-weak-nodes_4-2c7b9928
script=${BASH_SOURCE[0]}
[[ $script = /* ]] || script=$PWD/$script

# A job that PBS runs again keeps its id, and continues where it stopped.
job_id=${PBS_JOBID:?this script is for qsub}
set -- "${1:-${GFM_HARNESS_AGAIN:-}}"
rerun=${1:-}
exit_status=0
cd "$campaign"
if ! [ -e "jobs/$job.sh" ]; then
    echo "error: $campaign is not the folder of this job (GFM_HARNESS_CAMPAIGN and the script name different folders)" >&2
    exit 2
fi
# Libraries need a user name and a home folder, which a user in a container may lack.
export USER=${USER:-user-$UID} LOGNAME=${LOGNAME:-user-$UID}
if ! [ -w "${HOME:-}" ]; then
    scratch=${TMPDIR:-/tmp}/gfm-harness-$UID
    (umask 077 && mkdir -p "$scratch")
    [ -O "$scratch" ] || scratch=$(mktemp -d)
    export HOME=${HOME:-$scratch} XDG_CACHE_HOME=${XDG_CACHE_HOME:-$scratch} MPLCONFIGDIR=${MPLCONFIGDIR:-$scratch}
    export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$scratch/triton}
fi

missing_programs=
for program in cat cp cut date grep head mkdir mv rm sleep sort timeout uname wc ; do
    command -v "$program" > /dev/null || missing_programs+=" $program"
done
if [ -n "$missing_programs" ]; then
    echo "error: programs that this job needs are not installed:$missing_programs" >&2
    exit 69
fi
export OMP_NUM_THREADS=1
export MALLOC_MMAP_MAX_=0
export MALLOC_TRIM_THRESHOLD_=1000000000000
export MALLOC_TOP_PAD_=268435456
export PYTHONNOUSERSITE=1

# check_nodes: list the nodes that answer and pass the check. A case takes the first ones.
# The files belong to this job alone: a second job of the same script may run at the same time.
nodes=$campaign/jobs/$job.$job_id.nodes
sort -u "$PBS_NODEFILE" > "$nodes.requested"
requested_nodes=$(wc -l < "$nodes.requested")
# shellcheck disable=SC2016,SC2089  # expanded on the nodes
check='test -w "${TMPDIR:-/tmp}"'
check_nodes() {
    local name
    timeout -k 10 "$1" mpiexec -n "$requested_nodes" --ppn 1 --hostfile "$nodes.requested" bash -c \
        "if { $check; } > /dev/null 2>&1; then uname -n; fi" | cut -d . -f 1 | sort -u > "$nodes.answered" || true
    while read -r name; do
        if grep -Fqx "${name%%.*}" "$nodes.answered"; then echo "$name"; fi
    done < "$nodes.requested" > "$nodes"
    healthy_nodes=$(wc -l < "$nodes")
    MASTER_ADDR=$(head -n 1 "$nodes")
    echo "$healthy_nodes of $requested_nodes nodes passed the check"
}
number=${PBS_JOBID%%[!0-9]*}
export MASTER_ADDR MASTER_PORT=$((20000 + number % 10000))
# A scheduler that has just started a job may not be ready for the steps of the job.
for _ in 1 2 3; do
    check_nodes 300
    if [ "$healthy_nodes" -gt 0 ]; then break; fi
    sleep 5
done

# same_nodes: succeed if all nodes are still healthy. The scheduler may end the job meanwhile.
same_nodes() {
    local before=$healthy_nodes
    sleep 2
    check_nodes 60
    [ "$healthy_nodes" -ge "$before" ]
}

# first N: write the file that names the first N healthy nodes in the format of mpiexec, and print its path.
first() {
    head -n "$1" "$nodes" > "$nodes.$1"
    echo "$nodes.$1"
}

# keep_nodes N: write the nodes of the case into its folder.
keep_nodes() { head -n "$1" "$nodes" > ./nodes; }

# Python must not import from the current folder, since others may have written the files of a case.
export PYTHONSAFEPATH=1
if [ -n "${PYTHONPATH:-}" ]; then
    IFS=: read -ra entries <<< "$PYTHONPATH"
    PYTHONPATH=
    for entry in "${entries[@]}"; do
        if [[ $entry = /* ]]; then PYTHONPATH+=${PYTHONPATH:+:}$entry; fi
    done
fi
python=/environment/bin/python

# Telemetry: the first rank of every node, and every rank with a GPU of its own, writes samples to the case's folder.
export GFM_HARNESS_SAMPLER_S=5

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
            echo "$case: a node was lost and too few are left; another job can run the case" >&2
            exit_status=75
            return
        fi
        echo "$case: a node was lost, and the case is started again on others"
        first "$node_count" > /dev/null
    done
    if [ "$status" -eq 124 ]; then
        echo "stopped after $limit s, the time limit of this case" >> stderr
    fi
    printf '%s\n%s\n' "$status" "$((SECONDS - started))" > exit_code.part
    mv exit_code.part exit_code
    echo "$case: exit code $status after $((SECONDS - started)) s"
    if [ "$status" -ne 0 ]; then exit_status=1; fi
}

run_case scaling-weak-nodes_4-db89bde36a '' 4 600 \
    env WORLD_SIZE=8 mpiexec -n 8 --ppn 2 --hostfile "$(first 4)" \
    "$python" -P -m harness.reference "$campaign"/scaling-weak-nodes_4-db89bde36a

run_case scaling-weak-nodes_8-9859d4fdef '' 8 600 \
    env WORLD_SIZE=16 mpiexec -n 16 --ppn 2 --hostfile "$(first 8)" \
    "$python" -P -m harness.reference "$campaign"/scaling-weak-nodes_8-9859d4fdef

exit "$exit_status"
