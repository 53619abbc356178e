#!/usr/bin/env bash
#PBS -N scaling-weak-nodes_512-1676731f
#PBS -S /bin/bash
#PBS -l select=1024
#PBS -l place=scatter:excl
#PBS -l walltime=01:03:00
#PBS -j oe
#PBS -o "/campaign/jobs/scaling-weak-nodes_512-1676731f.log"
#PBS -r y
#PBS -A abc123
#PBS -q prod
#PBS -l filesystems=home:flare
#PBS -k doe
#
# Weak and strong scaling of data-parallel training
# 2 cases, one after another, on Aurora (ALCF):
#   scaling-weak-nodes_512 (id 53ce66e600294ee5): 512 nodes x 12 ranks, 30 min at most
#   scaling-weak-nodes_1024 (id 2b16df96450b451a): 1024 nodes x 12 ranks, 30 min at most
# Written by gfm-harness VERSION with `harness run scaling --system aurora`.
# To submit it by hand: `qsub jobs/scaling-weak-nodes_512-1676731f.sh`, or with `-v GFM_HARNESS_AGAIN=again` to repeat the cases that have ended.
# Each case writes events.jsonl, stdout, stderr and exit_code into its folder; a case that has ended is skipped.
# shellcheck disable=SC1091  # environments exist only where the job runs
set -euo pipefail

campaign=${GFM_HARNESS_CAMPAIGN:-/campaign}
job=scaling-weak-nodes_512-1676731f
script=${BASH_SOURCE[0]}
[[ $script = /* ]] || script=$PWD/$script

# A job that PBS runs again keeps its id, and continues where it stopped.
job_id=${PBS_JOBID:?this script is for qsub}
set -- "${1:-${GFM_HARNESS_AGAIN:-}}"
rerun=${1:-}
exit_status=0
has_other_nodes=yes
export faulty_nodes=$campaign/jobs/faulty_nodes
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

set +u
module reset
module load frameworks
set -u

missing_programs=
for program in cat cp cut date grep head mkdir mv rm sleep sort tail timeout uname wc ; do
    command -v "$program" > /dev/null || missing_programs+=" $program"
done
if [ -n "$missing_programs" ]; then
    echo "error: programs that this job needs are not installed:$missing_programs" >&2
    exit 69
fi
export OMP_NUM_THREADS=8
export PYTHONNOUSERSITE=1
export CCL_KVS_MODE=mpi
export CCL_KVS_CONNECTION_TIMEOUT=900
export FI_MR_CACHE_MONITOR=userfaultfd
export FI_CXI_RX_MATCH_MODE=hybrid
export TORCH_DISTRIBUTED_USE_TORCHCOMMS=1
export TRITON_CACHE_DIR="/tmp/triton-$UID"

# drop_faulty_nodes: remove the nodes of which a GPU has reported an error from the list of nodes.
drop_faulty_nodes() {
    local line
    if ! [ -e "$faulty_nodes" ] || [ $(($(date +%s) - $(date -r "$faulty_nodes" +%s))) -gt 86400 ]; then
        return 0
    fi
    cut -d ' ' -f 1 "$faulty_nodes" > "$nodes.faulty"
    while read -r line; do
        if ! grep -Fqx "${line%% *}" "$nodes.faulty"; then echo "$line"; fi
    done < "$nodes" > "$nodes.part"
    mv "$nodes.part" "$nodes"
}

# list_lost_nodes: print the nodes of the case that are not in the list of nodes any more.
list_lost_nodes() {
    local names
    names=$(cut -d ' ' -f 1 nodes | { grep -Fxv -f <(cut -d ' ' -f 1 "$nodes") || true; })
    echo "${names//$'\n'/ }"
}

# check_nodes: list the nodes that answer and pass the check. A case takes the first ones.
# The files belong to this job alone: a second job of the same script may run at the same time.
nodes=$campaign/jobs/$job.$job_id.nodes
sort -u "$PBS_NODEFILE" > "$nodes.requested"
requested_nodes=$(wc -l < "$nodes.requested")
# shellcheck disable=SC2016,SC2089  # expanded on the nodes
check='test "$(find /dev/dri -name '"'"'renderD*'"'"' | wc -l)" -ge 6'
check_nodes() {
    local name
    timeout -k 10 "$1" mpiexec -n "$requested_nodes" --ppn 1 --hostfile "$nodes.requested" bash -c \
        "if { $check; } > /dev/null 2>&1; then uname -n; fi" | cut -d . -f 1 | sort -u > "$nodes.answered" || true
    while read -r name; do
        if grep -Fqx "${name%%.*}" "$nodes.answered"; then echo "$name"; fi
    done < "$nodes.requested" > "$nodes"
    drop_faulty_nodes
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
    check_nodes 300
    [ "$healthy_nodes" -ge "$before" ]
}

# first N: write the file that names the first N healthy nodes in the format of mpiexec, and print its path.
first() {
    head -n "$1" "$nodes" > "$nodes.$1"
    echo "$nodes.$1"
}

# keep_nodes N: write the nodes of the case into its folder.
keep_nodes() { head -n "$1" "$nodes" > ./nodes; }

source "$HOME/gfm-harness-aurora/bin/activate"
# Python must not import from the current folder, since others may have written the files of a case.
export PYTHONSAFEPATH=1
if [ -n "${PYTHONPATH:-}" ]; then
    IFS=: read -ra entries <<< "$PYTHONPATH"
    PYTHONPATH=
    for entry in "${entries[@]}"; do
        if [[ $entry = /* ]]; then PYTHONPATH+=${PYTHONPATH:+:}$entry; fi
    done
fi
python=python

# Telemetry: the first rank of every node, and every rank with a GPU of its own, writes samples to the case's folder.
export GFM_HARNESS_SAMPLER_S=5

"$python" -P -m harness.host.provenance > "jobs/$job.provenance.json" || echo '{}' > "jobs/$job.provenance.json"
# The cases of a job share this file by hard links, so it is replaced, never changed. A second job of the same script may
# run at the same time.
environment=jobs/$job.environment.json
if "$python" -P -m harness.host.environment > "$environment.$job_id.part"; then
    mv "$environment.$job_id.part" "$environment"
else
    rm -f "$environment" "$environment.$job_id.part"
fi

# find_gpu_error BYTES: print the first line about an error of a GPU in the case's stderr after its first bytes.
find_gpu_error() {
    tail -c "+$(($1 + 1))" stderr | grep -aEm 1 -e 'NVRM: Xid [(][^)]*[)]: (48|6[124]|74|79|9[45]|110|119|12[013]|14[03-9]|150)($|[^0-9])|fallen off the bus|uncorrectable (ECC|NVLink) error|amdgpu.*([1-9][0-9]* (new )?uncorrectable hardware errors|RAS poison|GPU reset begin)|HW Exception by GPU node|i915 .*(GPU HANG|Resetting chip)|xe .*(declared device .* as wedged|GT[0-9]+: reset (started|failed))|(UR|ZE)_RESULT_ERROR_DEVICE_LOST' || true
}

# exclude_faulty_node ERROR NODES RANKS: note the node of the rank that reported an error, for a case with this number
# of ranks on each node. Fail if the launcher does not label the lines with the rank.
exclude_faulty_node() {
    local rank=0 name
    if [ "$2" -gt 1 ]; then
        [[ $1 =~ ^\ *([0-9]+):\  ]] || return 1
        rank=${BASH_REMATCH[1]}
    fi
    name=$(head -n $((rank / $3 + 1)) nodes | tail -n 1 | cut -d ' ' -f 1)
    echo "$name is not used for a day, unless $faulty_nodes is removed"
    echo "$name $1" >> "$faulty_nodes"
}

# run_case FOLDER "DEPENDENCIES" NODES RANKS SECONDS COMMAND...: run one case, with this number of ranks on each node, and
# write its exit code and seconds.
run_case() {
    local case=$1 dependencies=$2 node_count=$3 node_ranks=$4 limit=$5 status=0 started=$SECONDS dependency
    local stderr_bytes error lost
    shift 5
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
    if [ -e "$campaign/$environment" ]; then
        ln -f "$campaign/$environment" environment.json 2> /dev/null || cp "$campaign/$environment" environment.json
    fi
    # The ranks read the case from their environment, so that not all of them open its file at once. Linux passes at most
    # 128 KiB in a variable.
    GFM_HARNESS_CASE=
    if [ "$(wc -c < case.json)" -le 60000 ]; then GFM_HARNESS_CASE=$(cat case.json); fi
    export GFM_HARNESS_CASE="$campaign/$case"$'\t'"${GFM_HARNESS_CASE//$'\n'/ }"
    echo "$case: started $(date '+%F %T')"
    while true; do
        status=0
        keep_nodes "$node_count"
        : >> stderr
        stderr_bytes=$(wc -c < stderr)
        timeout -k 60 "$limit" "$@" >> stdout 2>> stderr < /dev/null || status=$?
        if [ "$status" -eq 0 ] || [ "$status" -eq 124 ]; then break; fi
        error=$(find_gpu_error "$stderr_bytes")
        if [ -n "$error" ]; then
            echo "error: an error of a GPU: $error" >&2
            if [ "$has_other_nodes" = no ]; then break; fi
            if ! exclude_faulty_node "$error" "$node_count" "$node_ranks"; then
                echo "$case: it is not known which node the error is on; another job can run the case" >&2
                exit_status=75
                return
            fi
        fi
        if same_nodes; then break; fi
        lost=$(list_lost_nodes)
        if [ "$node_count" -gt "$healthy_nodes" ]; then
            echo "$case: lost $lost and too few nodes are left; another job can run the case" >&2
            exit_status=75
            return
        fi
        echo "$case: ${lost:+lost $lost and }the case is started again"
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

run_case scaling-weak-nodes_512-53ce66e600 '' 512 12 1800 \
    env WORLD_SIZE=6144 mpiexec -n 6144 --ppn 12 --hostfile "$(first 512)" \
    --cpu-bind=list:1-8:9-16:17-24:25-32:33-40:41-48:53-60:61-68:69-76:77-84:85-92:93-100 \
    "$python" -P -m harness.reference "$campaign"/scaling-weak-nodes_512-53ce66e600

run_case scaling-weak-nodes_1024-2b16df9645 '' 1024 12 1800 \
    env WORLD_SIZE=12288 mpiexec -n 12288 --ppn 12 --hostfile "$(first 1024)" \
    --cpu-bind=list:1-8:9-16:17-24:25-32:33-40:41-48:53-60:61-68:69-76:77-84:85-92:93-100 \
    "$python" -P -m harness.reference "$campaign"/scaling-weak-nodes_1024-2b16df9645

exit "$exit_status"
