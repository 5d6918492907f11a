#!/usr/bin/env bash
# Restarts memcached servers one after another, each only while every item has two copies.
#
#   rolling-restart.sh [-P proxy] [-t time] [-r resilver] COMMAND [server ...]
#
#   COMMAND   run by sh for each server; %h is its host (an IPv6 address without brackets), %p its
#             port. It must return only when the server has been restarted:
#                 'systemctl restart memcached@%p'      'ssh %h systemctl restart memcached'
#   server    host:port as the proxy names it; none given = all servers of the proxy
#   -P        the proxy: host:port, [IPv6]:port or the path of its unix socket; default
#             127.0.0.1:11211
#   -t        how long to wait for each server's refill; default 30m
#   -r        the resilver program; by default found in PATH
#
# Exit code 0: all servers are restarted and everything is mirrored. After any failure it stops at
# once, and does not touch the servers not named yet.
set -euo pipefail
proxy=127.0.0.1:11211 time=30m resilver=resilver
while getopts P:t:r: option; do
    case $option in
    P) proxy=$OPTARG ;;
    t) time=$OPTARG ;;
    r) resilver=$OPTARG ;;
    *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
if (($# == 0)); then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
command=$1
shift

wait_mirrored() {
    "$resilver" wait --mirrored --proxy "$proxy" --timeout "$time" >/dev/null
}

# Also finds out whether there is a proxy at all.
wait_mirrored
servers=("$@")
if ((${#servers[@]} == 0)); then
    asked=$("$resilver" ask --proxy "$proxy" stats servers)
    mapfile -t servers < <(sed -n 's/^\(.*\):place .*/\1/p' <<<"$asked")
fi
if ((${#servers[@]} == 0)); then
    echo "rolling-restart: $proxy names no servers" >&2
    exit 1
fi
for server in "${servers[@]}"; do
    host=${server%:*} port=${server##*:}
    host=${host#[} host=${host%]}
    line=${command//%h/$host}
    line=${line//%p/$port}
    echo "$server: $line"
    sh -c "$line"
    wait_mirrored
    echo "$server: mirrored"
done
