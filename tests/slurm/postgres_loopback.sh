#!/usr/bin/env bash
# A PostgreSQL of its own for tests, on loopback, with a database "mlflow" that only a password opens.
#
#   postgres_loopback.sh install    Debian's package where it is missing (as root)
#   postgres_loopback.sh start      makes the cluster at the first call
#   postgres_loopback.sh stop       ends what `start` began; the data stay, so that `start` goes on with them
#   postgres_loopback.sh clear      stops it and deletes the data
#   postgres_loopback.sh env        what to `eval` before `mallowspo server`: the store, and the password apart
#
# Everything lies in $POSTGRES_LOOPBACK (default /tmp/mallowspo-postgres). PostgreSQL refuses to run as root: root calls
# it as the user postgres.
set -euo pipefail

home=${POSTGRES_LOOPBACK:-/tmp/mallowspo-postgres}
port=${POSTGRES_LOOPBACK_PORT:-15433}
PATH=$PATH:$(printf '%s:' /usr/lib/postgresql/*/bin)

as_postgres() {
    if [[ $(id -u) == 0 ]]; then runuser -u postgres -- env "PATH=$PATH" "$@"; else "$@"; fi
}

prepare() {
    mkdir -p "$home"
    [[ $(id -u) != 0 ]] || chown postgres: "$home"
    as_postgres sh -c "umask 077; head -c 24 /dev/urandom | base64 | tr -d '+/\n' >'$home/password'"
    as_postgres initdb --pgdata "$home/data" --username mlflow --pwfile "$home/password" \
        --auth scram-sha-256 --encoding UTF8 --no-sync >"$home/initdb.log"
}

start() {
    local fresh=no
    [[ -d $home/data ]] || { prepare && fresh=yes; }
    as_postgres pg_ctl start --wait --silent --pgdata "$home/data" --log "$home/data/log" \
        --options "-p $port -k $home -c listen_addresses=127.0.0.1"
    [[ $fresh == no ]] || PGPASSWORD=$(<"$home/password") createdb --host 127.0.0.1 --port "$port" --username mlflow mlflow
}

stop() {
    [[ ! -f $home/data/postmaster.pid ]] || as_postgres pg_ctl stop --wait --silent --mode fast --pgdata "$home/data"
}

install_package() {
    command -v initdb pg_ctl >/dev/null && return
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq -y --no-install-recommends postgresql-common
    # The package else makes and starts a cluster of its own.
    sed -i 's/^#\? *create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
    apt-get install -qq -y --no-install-recommends postgresql
}

case ${1:-help} in
install) install_package ;;
start) start ;;
stop) stop ;;
clear) stop && rm -rf "$home" ;;
env)
    printf 'export MLFLOW_BACKEND_STORE_URI=postgresql://mlflow@127.0.0.1:%s/mlflow\n' "$port"
    printf 'export PGPASSWORD=%q\n' "$(<"$home/password")"
    ;;
*) sed -n '2,9s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
