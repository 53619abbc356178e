#!/usr/bin/env bash
#
# Weak and strong scaling of data-parallel training
# 1 case on This machine:
#   scaling-weak-ranks_per_node_2 (id c95b8886fc20de68): 1 node x 2 ranks, 10 min at most
# Written by gfm-harness VERSION with `harness run scaling --system local`.
# To submit it by hand: `bash jobs/scaling-weak-ranks_per_node_2-457a521a.sh`, or with the argument `again` to repeat the cases that have ended.
# Each case writes events.jsonl, stdout, stderr and exit_code into its folder; a case that has ended is skipped.
# shellcheck disable=SC1091  # environments exist only where the job runs
set -euo pipefail

campaign=${GFM_HARNESS_CAMPAIGN:-/campaign}
job=scaling-weak-ranks_per_node_2-457a521a
script=${BASH_SOURCE[0]}
[[ $script = /* ]] || script=$PWD/$script

job_id="$(uname -n)-$$"
export MASTER_ADDR=127.0.0.1 MASTER_PORT=$((20000 + $$ % 10000))
# The ranks belong to this job, even if it is started inside an allocation or a rank of another launcher.
unset "${!SLURM_@}" "${!PMI_@}" "${!PMIX_@}" "${!PALS_@}" "${!OMPI_COMM_WORLD_@}" "${!MPI_LOCAL@}" "${!HYDRA_@}" \
    PBS_NODEFILE PE_HOSTFILE RANK LOCAL_RANK WORLD_SIZE
export HYDRA_LAUNCHER=fork I_MPI_HYDRA_BOOTSTRAP=fork
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

missing_programs=
for program in cat cp cut date grep head mkdir mv rm sleep sort tail timeout uname wc ; do
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
export GOMP_SPINCOUNT=1000

# Only one process may run this job at a time, and the lock lives as long as any process of the job. The wait is needed
# since a query of the job's state holds the lock for an instant. On a file system without locks, a file names the shell
# that runs the job.
exec 9>> "jobs/$job.lock"
holder=$campaign/jobs/$job.lock.held
lock_status=0
write_holder() { (set -o noclobber && echo "$(uname -n) $$ $(date +%s)" > "$holder") 2> /dev/null; }
flock -w 2 9 2> /dev/null || lock_status=$?
if [ "$lock_status" -gt 1 ]; then
    lock_status=0
    if [ -s "$holder" ] && read -r host shell _ < "$holder" && [ "$host" = "$(uname -n)" ] &&
        ! kill -0 "$shell" 2> /dev/null
    then
        rm -f "$holder"
    fi
    write_holder || lock_status=1
fi
if [ "$lock_status" -eq 1 ]; then
    echo "error: this job is already running here" >&2
    exit 3
fi
healthy_nodes=1
has_other_nodes=no
same_nodes() { true; }
first() { true; }
keep_nodes() { uname -n > nodes; }
PATH=/environment/bin:$PATH
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
export GFM_HARNESS_SAMPLER_S=1

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

run_case scaling-weak-ranks_per_node_2-c95b8886fc '' 1 2 600 \
    mpiexec -n 2 \
    "$python" -P -m harness.reference "$campaign"/scaling-weak-ranks_per_node_2-c95b8886fc

rm -f "$holder"
exit "$exit_status"
