#!/usr/bin/env bash
#SBATCH --job-name=scaling-weak-nodes_512-fe9868f1
#SBATCH --nodes=1024
#SBATCH --time=01:05:00
#SBATCH --output="/campaign/jobs/scaling-weak-nodes_512-fe9868f1.log"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --exclusive
#SBATCH --account=abc123
#SBATCH --partition=batch
#SBATCH --constraint=nvme
#
# Weak and strong scaling of data-parallel training
# 2 cases, one after another, on Frontier (OLCF):
#   scaling-weak-nodes_512 (id 39e2b0b5cccf2c34): 512 nodes x 8 ranks, 30 min at most
#   scaling-weak-nodes_1024 (id dffd31543d0c11e0): 1024 nodes x 8 ranks, 30 min at most
# Written by gfm-harness VERSION with `harness run scaling --system frontier`.
# To submit it by hand: `sbatch jobs/scaling-weak-nodes_512-fe9868f1.sh`, or with the argument `again` to repeat the cases that have ended.
# Each case writes events.jsonl, stdout, stderr and exit_code into its folder; a case that has ended is skipped.
# shellcheck disable=SC1091  # environments exist only where the job runs
set -euo pipefail

campaign=${GFM_HARNESS_CAMPAIGN:-/campaign}
job=scaling-weak-nodes_512-fe9868f1
script=${BASH_SOURCE[0]}
[[ $script = /* ]] || script=$PWD/$script

# A job that Slurm requeues keeps its id, and continues where it stopped.
job_id=${SLURM_JOB_ID:?this script is for sbatch}
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then job_id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi
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
module load cpe/24.07 cce/18.0.0 rocm/7.1.1 amd-mixed/7.1.1 craype-accel-amd-gfx90a PrgEnv-gnu miniforge3/23.11.0-0
module unload darshan-runtime
set -u

missing_programs=
for program in cat cp cut date grep head mkdir mv rm sleep sort tail timeout uname wc sinfo srun; do
    command -v "$program" > /dev/null || missing_programs+=" $program"
done
if [ -n "$missing_programs" ]; then
    echo "error: programs that this job needs are not installed:$missing_programs" >&2
    exit 69
fi
venv=$HOME/gfm-harness-frontier
archive=
if [ -z "$archive" ] && [ -f "$venv.tar.gz" ]; then archive=$venv.tar.gz; fi
if [ -z "$archive" ]; then echo "warning: without the setting archive every process reads $venv over the network" >&2; fi
plugin=
if [ -n "$plugin" ]; then
    export NCCL_NET_PLUGIN="$plugin" NCCL_NET="AWS Libfabric"
else
    echo "warning: without the setting nccl_plugin RCCL talks over sockets" >&2
fi
export OMP_NUM_THREADS=7
export PYTHONNOUSERSITE=1
export FI_MR_CACHE_MONITOR=kdreg2
export FI_CXI_DEFAULT_CQ_SIZE=131072
export FI_CXI_DEFAULT_TX_SIZE=2048
export FI_CXI_RX_MATCH_MODE=hybrid
export FI_CXI_RDZV_PROTO=alt_read
export FI_CXI_DISABLE_HOST_REGISTER=1
export FI_CXI_RDZV_EAGER_SIZE=0
export FI_CXI_RDZV_GET_MIN=0
export FI_CXI_RDZV_THRESHOLD=0
export NCCL_NET_GDR_LEVEL=PHB
export NCCL_CROSS_NIC=1
export NCCL_SOCKET_IFNAME=hsn0
export TORCH_NCCL_HIGH_PRIORITY=1
export GPU_MAX_HW_QUEUES=2
export HSA_FORCE_FINE_GRAIN_PCIE=1
export MPICH_ENV_DISPLAY=0
export MIOPEN_DISABLE_CACHE=1
export MIOPEN_USER_DB_PATH=/tmp
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

# check_nodes: list the nodes that are up and pass the check, as lines `name host`. A case takes the first ones.
# The files belong to this job alone: a second job of the same script may run at the same time.
nodes=$campaign/jobs/$job.$job_id.nodes
# shellcheck disable=SC2016,SC2089  # expanded on the nodes
check='test -w /mnt/bb/$USER && test "$(find /dev/dri -name '"'"'renderD*'"'"' | wc -l)" -ge 8'
check_nodes() {
    local up
    sinfo --all --noheader --Node --nodes="$SLURM_JOB_NODELIST" --format='%N %t' | grep -Ev ' (down|fail|unk)|[*]$' |
        cut -d ' ' -f 1 | sort -u > "$nodes.up" || true
    up=$(wc -l < "$nodes.up")
    timeout -k 10 "$1" \
        srun --overlap --nodes="$up" --ntasks="$up" --ntasks-per-node=1 --nodelist="$nodes.up" bash -c \
        "if { $check; } > /dev/null 2>&1; then echo \"\$SLURMD_NODENAME \$(uname -n)\"; fi" | sort > "$nodes" || true
    drop_faulty_nodes
    healthy_nodes=$(wc -l < "$nodes")
    MASTER_ADDR=$(head -n 1 "$nodes" | cut -d ' ' -f 2)
    echo "$healthy_nodes of $SLURM_JOB_NUM_NODES nodes passed the check"
}
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
# A scheduler that has just started a job may not be ready for the steps of the job.
for _ in 1 2 3; do
    check_nodes 300
    if [ "$healthy_nodes" -gt 0 ]; then break; fi
    sleep 5
done

# same_nodes: succeed if all nodes are still healthy and the case was started. The scheduler may end the job meanwhile.
same_nodes() {
    local before=$healthy_nodes
    sleep 2
    check_nodes 300
    if [ "$(count_refusals)" -gt "$refusals" ]; then
        echo "Slurm's controller did not answer srun, which started nothing"
        for _ in 1 2 3; do
            if [ "$healthy_nodes" -gt 0 ]; then break; fi
            sleep 10
            check_nodes 300
        done
        return 1
    fi
    [ "$healthy_nodes" -ge "$before" ]
}

# count_refusals: print how often srun has ended because the controller did not answer. The exit code of srun does not
# show that, since programs also end with 1.
count_refusals() {
    { grep -Es '^srun: error: Unable to (confirm allocation|create step) .*(contact|timed out|Zero Bytes|socket)' stderr || true; } |
        wc -l
}

# first N: write the file that names the first N healthy nodes in the format of srun, and print its path.
first() {
    head -n "$1" "$nodes" | cut -d ' ' -f 1 > "$nodes.$1"
    echo "$nodes.$1"
}

# keep_nodes N: write the nodes of the case into its folder.
keep_nodes() {
    head -n "$1" "$nodes" > ./nodes
    refusals=$(count_refusals)
}

if [ -n "$archive" ]; then
    local_env=/mnt/bb/$USER/gfm-harness
    sbcast --force "$archive" "$local_env.tar.gz" || { echo "error: sbcast of $archive failed" >&2; exit 75; }
    srun --nodes="$healthy_nodes" --ntasks="$healthy_nodes" --ntasks-per-node=1 --nodelist="$(first "$healthy_nodes")" bash -c \
        "mkdir -p $local_env && tar -xzf $local_env.tar.gz -C $local_env" ||
        { echo "error: unpacking $archive on the nodes failed" >&2; exit 75; }
    venv=$local_env
fi
VIRTUAL_ENV_DISABLE_PROMPT=1 source "$venv/bin/activate"
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

# Telemetry by Omnistat, whose output is in $telemetry.log. If Omnistat fails, the job continues without it.
telemetry=$campaign/jobs/$job.${job_id//[^A-Za-z0-9_]/-}.omnistat
telemetry_id=$SLURM_JOB_ID telemetry_job=()
omnistat() {
    local tool=$1
    shift
    (cd "$telemetry.work" && unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY &&
        timeout -k 10 600 "${OMNISTAT_WRAPPER}" "$tool" "$@" >> "$telemetry.log" 2>&1 < /dev/null 9>&-)
}
annotate() { omnistat annotate --mode "$1" --text "$2" || true; }
fetch() { curl --silent --get --noproxy '*' --max-time 10 "$@" 2> /dev/null; }
# listens URL: succeed if a program listens there; curl distinguishes a refused connection from every other answer.
listens() {
    local status=0
    fetch --output /dev/null "$1" || status=$?
    [ "$status" -ne 6 ] && [ "$status" -ne 7 ]
}
# has_samples SELECTOR: succeed if a sample that the selector matches has arrived since this job started.
has_samples() {
    [[ $(fetch --fail "$server/api/v1/export" --data-urlencode "match[]=$1" --data "start=$started_s" | head -c 10) == '{"metric":' ]]
}
wait_for_samples() {
    local started=$SECONDS timeout_s
    while ! has_samples "$1"; do
        timeout_s=10
        # Each node pushes once a minute, the first time at a random moment.
        if [ "$(fetch "$server/health")" = OK ]; then timeout_s=105; fi
        if [ $((SECONDS - started)) -ge "$timeout_s" ]; then return 1; fi
        sleep 1
    done
}
# shellcheck disable=SC2317  # run by the trap
stop_telemetry() {
    local part=$telemetry.jsonl.part since=()
    [ "$telemetry_on" = yes ] || return 0
    telemetry_on=no
    if [ "$is_shared" = yes ]; then since=(--data "start=$started_s"); fi
    omnistat usermode --stopexporters "${telemetry_job[@]}" || true
    sleep 3  # the server shows new samples only after a second or two
    if curl --silent --show-error --fail --noproxy '*' --max-time 600 "$server/api/v1/export" "${since[@]}" \
        --data-urlencode 'match[]={__name__!=""}' > "$part" 2>> "$telemetry.log" && [ -s "$part" ]; then
        mv "$part" "$telemetry.jsonl"
    else
        rm -f "$part"
        echo "warning: no telemetry could be exported; see $telemetry.log, and the server's data in $OMNISTAT_VICTORIA_DATADIR" >&2
    fi
    # Write CSV files too, which the tool can do only if it has metrics of AMD GPUs.
    omnistat query --job "$telemetry_id" --interval 15 --export "$telemetry" || true
    # This stops every server of this user on the node.
    if [ "$is_shared" = no ]; then omnistat usermode --stopserver || true; fi
    # The server may still write for a moment. Without an export its data are kept.
    if [ -s "$telemetry.jsonl" ]; then
        rm -rf "$OMNISTAT_VICTORIA_DATADIR" 2> /dev/null || { sleep 3 && rm -rf "$OMNISTAT_VICTORIA_DATADIR"; }
    fi
}
module use /sw/frontier/amdsw/modulefiles || true
module load omnistat-wrapper || true
export telemetry server=${OMNISTAT_SERVER:-http://localhost:9090}
export -f omnistat annotate
mkdir -p "$telemetry.work"
# Omnistat's annotations need USER; two jobs that share a data folder would export each other's samples.
export USER=${USER:-${LOGNAME:-$(id -un 2> /dev/null || id -u)}}
export OMNISTAT_VICTORIA_DATADIR=${OMNISTAT_VICTORIA_DATADIR:-$telemetry.work}/data-$telemetry_id
telemetry_on=no is_shared=no failure='' port=8001 started_s=$(date +%s)
# With a configuration, the exporters (and so the figures of merit) get a free port of their own.
if grep -q '^\[omnistat\.collectors\]' "${OMNISTAT_CONFIG:-/dev/null}" 2> /dev/null; then
    port=$((20000 + RANDOM % 10000))
    while listens "http://localhost:$port"; do port=$((port + 1)); done
    awk -v port="$port" '
        /^\[/ { inside = /^\[omnistat\.collectors\]/; print; if (inside) print "port = " port; next }
        !(inside && /^port[ \t]*[=:]/)' "$OMNISTAT_CONFIG" > "$telemetry.work/config"
    export OMNISTAT_CONFIG=$telemetry.work/config
fi
fom_url=${OMNISTAT_FOM:-http://localhost:$port/fom}
if listens "$fom_url"; then
    echo "warning: no figures of merit are posted, since $fom_url is taken by another program" >&2
    fom_url=''
fi
samples='{__name__!=""}'
if listens "$server"; then
    is_shared=yes samples="{jobid=\"$telemetry_id\"}"
    if [ -z "${OMNISTAT_SERVER:-}" ]; then failure="$server, where Omnistat starts its server, is taken by another program"; fi
fi
if [ -n "$failure" ]; then
    :
elif ! omnistat usermode --start --interval 15 --pushinterval 1 "${telemetry_job[@]}"; then
    failure="Omnistat did not start"
elif ! wait_for_samples "$samples"; then
    failure="Omnistat started, but no sample of this job reached $server"
    omnistat usermode --stopexporters "${telemetry_job[@]}" || true
    if [ "$is_shared" = no ]; then omnistat usermode --stopserver || true; fi
fi
if [ -z "$failure" ]; then
    telemetry_on=yes
    trap 'stop_telemetry || true' EXIT
    export GFM_HARNESS_FOM_URL=$fom_url
    for failed in "$telemetry.work/omnistat_failed_hosts.$telemetry_id".*; do
        if [ -s "$failed" ]; then echo "warning: no telemetry from $(wc -l < "$failed") hosts: $failed" >&2; fi
    done
else
    echo "warning: $failure (see $telemetry.log); the ranks sample their nodes themselves" >&2
    export GFM_HARNESS_SAMPLER_S=15
fi

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
        if [ "$telemetry_on" = yes ]; then annotate start "$case"; fi
        : >> stderr
        stderr_bytes=$(wc -c < stderr)
        timeout -k 60 "$limit" "$@" >> stdout 2>> stderr < /dev/null || status=$?
        if [ "$telemetry_on" = yes ]; then annotate stop "$case"; fi
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

run_case scaling-weak-nodes_512-39e2b0b5cc '' 512 8 1800 \
    srun --nodes=512 --ntasks=4096 --ntasks-per-node=8 \
    --cpus-per-task=7 --gpus-per-task=1 --gpu-bind=closest --nodelist="$(first 512)" \
    --kill-on-bad-exit=1 --label \
    "$python" -P -m harness.reference "$campaign"/scaling-weak-nodes_512-39e2b0b5cc

run_case scaling-weak-nodes_1024-dffd31543d '' 1024 8 1800 \
    srun --nodes=1024 --ntasks=8192 --ntasks-per-node=8 \
    --cpus-per-task=7 --gpus-per-task=1 --gpu-bind=closest --nodelist="$(first 1024)" \
    --kill-on-bad-exit=1 --label \
    "$python" -P -m harness.reference "$campaign"/scaling-weak-nodes_1024-dffd31543d

exit "$exit_status"
