"""The configuration files of an emulated Slurm cluster and of its accounting database."""

from __future__ import annotations

CONFIGURATION = """\
ClusterName=local
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/linux
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobcomp.txt
ReturnToService=2
SlurmctldParameters=config_overrides
SlurmdParameters=config_overrides
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
GresTypes=gpu
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] {hardware} State=UNKNOWN
"""
SETTINGS = {
    "MessageTimeout": "10",  # seconds until a command gives up on a controller that is down
    "SchedulerParameters": "batch_sched_delay=0,sched_min_interval=0,bf_interval=1",
}

# A database for one cluster: reachable only by its socket, and not safe against a power loss.
DATABASE = """\
[mysqld]
user=root
datadir={folder}/database
socket={folder}/database.socket
pid-file={folder}/run/mariadbd.pid
log-error={folder}/log/mariadbd.log
skip-networking
skip-grant-tables
innodb_buffer_pool_size=32M
innodb_flush_log_at_trx_commit=0
innodb_lock_wait_timeout=900
"""
ACCOUNTING = """\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""
