#!/usr/bin/env bash
# Waits until every item has two copies: what to do between two restarts of servers.
#
#   wait-mirrored.sh [host [port [seconds]]]
#
# Exit 0: mirrored. 1: not within that time (the last status is printed). 2: the proxy cannot be asked.
set -euo pipefail
host=${1:-127.0.0.1} port=${2:-12000} seconds=${3:-600}

status() {
    exec 3<>"/dev/tcp/$host/$port" || return 1
    printf 'resync status\r\nquit\r\n' >&3
    timeout 5 cat <&3 | tr -d '\r'
    exec 3<&- 3>&-
}

deadline=$((SECONDS + seconds))
while :; do
    if ! answer=$(status 2>/dev/null); then
        echo "wait-mirrored: $host:$port does not answer" >&2
        exit 2
    fi
    if grep -qx 'STAT mirrored 1' <<<"$answer"; then
        echo "mirrored"
        exit 0
    fi
    if ((SECONDS >= deadline)); then
        grep -E '^STAT (pair|node):.*:(state|reason|resync|items_copied|items_total) ' <<<"$answer"
        exit 1
    fi
    sleep 0.5
done
