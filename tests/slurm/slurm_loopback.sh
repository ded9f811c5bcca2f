#!/usr/bin/env bash
# A real Slurm for tests: a controller and two pretend nodes with eight pretend GPUs each, all on this machine.
#
#   slurm_loopback.sh install            Debian's packages where they are missing (as root; half a minute)
#   slurm_loopback.sh start [PART...]    PART is munge, controller, n1 or n2; all of them if none is named
#   slurm_loopback.sh stop [PART...]     ends what `start` began, by process id; all of it also clears the folder
#   slurm_loopback.sh env                what to `eval` before sbatch, squeue and snakemake
#
# Everything lies in $SLURM_LOOPBACK (default /tmp/mallowspo-slurm) except one link, /etc/slurm/slurm.conf: Snakemake's
# jobs call srun with an environment from which SLURM_CONF was removed. No accounting, no cgroups, no systemd; as root.
set -euo pipefail

home=${SLURM_LOOPBACK:-/tmp/mallowspo-slurm}
link=/etc/slurm/slurm.conf
parts=(munge controller n1 n2)
gpus=7 # the number of the last one, counted from 0
export SLURM_CONF=$home/slurm.conf PATH=$PATH:/usr/sbin

main() {
    local verb=${1:-help}
    shift || true
    local all=no
    (($# > 0)) || { all=yes; set -- "${parts[@]}"; }
    case $verb in
    install) install_packages ;;
    env) printf 'export SLURM_CONF=%q\n' "$SLURM_CONF" ;;
    start)
        [[ -f $SLURM_CONF ]] || prepare
        for part in "$@"; do start_part "$part"; done
        until_true 30 answers "$@" || fail "Slurm did not come up; its logs are in $home/log"
        ;;
    stop)
        [[ $all == no ]] || end_jobs
        # The last one started is the first one stopped.
        for ((index = $#; index > 0; index--)); do stop_part "${!index}"; done
        [[ $all == no ]] || clear_away
        ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "$0" && exit 2 ;;
    esac
}

fail() { echo "slurm_loopback: $*" >&2 && exit 1; }

until_true() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || return 1
        sleep 0.2
    done
}

install_packages() {
    command -v slurmctld slurmd squeue munged >/dev/null && return
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq -y --no-install-recommends slurmctld slurmd slurm-client munge
}

prepare() {
    [[ ! -e $link || $(readlink "$link") == "$SLURM_CONF" ]] || fail "$link is there already, and is not ours"
    mkdir -p "$home"/{log,pid,state,gpu,spool-n1,spool-n2}
    install -d -o munge -g munge -m 755 "$home/munge"
    (umask 077 && head -c 1024 /dev/urandom >"$home/munge/key")
    chown munge: "$home/munge/key"
    # A GPU is a device file. Slurm refuses the same name twice; who opens one of these gets /dev/null.
    for name in n1 n2; do
        for number in $(seq 0 $gpus); do mknod "$home/gpu/$name-$number" c 1 3; done
    done
    settings >"$SLURM_CONF"
    gpu_settings >"$home/gres.conf"
    echo "CgroupAutomount=no" >"$home/cgroup.conf"
    mkdir -p "${link%/*}"
    ln -sfn "$SLURM_CONF" "$link"
}

settings() {
    local machine memory
    machine=$(hostname -s)
    memory=$(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo) # MiB; both nodes pretend to have all of it
    cat <<END
ClusterName=pretend
SlurmctldHost=$machine(127.0.0.1)
SlurmctldPort=17817
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$home/munge/socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
MailProg=/bin/true
AccountingStorageType=accounting_storage/none

StateSaveLocation=$home/state
SlurmdSpoolDir=$home/spool-%n
SlurmctldPidFile=$home/pid/controller
SlurmdPidFile=$home/pid/%n
SlurmctldLogFile=$home/log/controller
SlurmdLogFile=$home/log/%n

# Without cgroups: a job's processes are found by their parents, its memory is looked at every second.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill,UsePss

# Seconds. Snakemake and the tests ask squeue, which must still know a job that ended a while ago.
MinJobAge=1800
KillWait=2
SchedulerParameters=sched_interval=1,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
# Nodes may claim more than the machine has: frozen jobs wait here, they do not compute.
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=n1 NodeHostname=$machine NodeAddr=127.0.0.1 Port=17818 CPUs=16 RealMemory=$memory Gres=gpu:pretend:$((gpus + 1))
NodeName=n2 NodeHostname=$machine NodeAddr=127.0.0.1 Port=17819 CPUs=16 RealMemory=$memory Gres=gpu:pretend:$((gpus + 1))
PartitionName=main Nodes=n1,n2 Default=YES DefaultTime=10 MaxTime=INFINITE
END
}

gpu_settings() {
    echo "AutoDetect=off"
    for name in n1 n2; do
        echo "NodeName=$name Name=gpu Type=pretend File=$home/gpu/$name-[0-$gpus]"
    done
}

start_part() {
    case $1 in
    munge)
        runuser -u munge -- munged --key-file "$home/munge/key" --socket "$home/munge/socket" \
            --pid-file "$home/munge/pid" --log-file "$home/munge/log" --seed-file "$home/munge/seed"
        ;;
    controller) slurmctld -f "$SLURM_CONF" ;;
    n1 | n2) slurmd -f "$SLURM_CONF" -N "$1" ;;
    *) fail "no such part: $1" ;;
    esac
}

answers() { # PART...
    for part in "$@"; do
        case $part in
        munge) munge --no-input --socket "$home/munge/socket" ;;
        controller) scontrol ping | grep -q UP ;;
        *) sinfo --noheader --nodes "$part" --format %t | grep -Eqx 'idle|mix|alloc' ;;
        esac || return
    done
}

end_jobs() {
    answers controller >/dev/null 2>&1 || return 0
    squeue --noheader --format %i | xargs --no-run-if-empty scancel
    until_true 20 eval '[[ -z $(squeue --noheader) ]]' || fail "some jobs do not end: $(squeue)"
}

stop_part() {
    local file=$home/pid/$1 name=slurmd pid
    [[ $1 != controller ]] || name=slurmctld
    [[ $1 != munge ]] || { file=$home/munge/pid && name=munged; }
    [[ -s $file ]] || return 0
    pid=$(<"$file")
    # A number that another program has by now is left alone.
    [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$name" ]] || return 0
    kill "$pid"
    until_true 20 test ! -e "/proc/$pid" || fail "$1 (process $pid) does not end"
}

clear_away() {
    [[ $(readlink "$link") != "$SLURM_CONF" ]] || rm "$link"
    rm -rf "$home"
}

main "$@"
