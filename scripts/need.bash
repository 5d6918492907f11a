# What scripts/need-* share; sourced by them.

# Debian keeps daemons in sbin, which is not on everybody's PATH.
PATH=$PATH:/usr/sbin:/usr/local/sbin:/sbin

# How commands of root's begin.
as_root=()

# Whether something may be installed with apt-get, by root or with a sudo that asks nothing.
may_install() {
    command -v apt-get >/dev/null || return 1
    [ "$(id -u)" -ne 0 ] || return 0
    command -v sudo >/dev/null && sudo -n true 2>/dev/null || return 1
    as_root=(sudo -n)
}

# Whether it may be without sudo: what only some tests want is nothing to become root for.
is_root_with_apt() {
    [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null
}

# Some packages start a server by themselves. Nobody asked for that one: this policy forbids it,
# unless the machine has a policy of its own.
forbid_starts() {
    policy=/usr/sbin/policy-rc.d
    [ ! -e "$policy" ] || return 0
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null && "${as_root[@]}" chmod 755 "$policy"
}

# apt_install PACKAGE...
apt_install() {
    forbid_starts || return 1
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@")
    # A fresh machine has no package lists, or old ones.
    "${apt[@]}" || { "${as_root[@]}" apt-get update && "${apt[@]}"; }
}

# need_server COMMAND DEBIAN-PACKAGE OLDEST WHO: installs a server that WHO starts, where it is
# missing, or says what to type. The caller's `version` prints that of the one that is here.
need_server() {
    local command=$1 package=$2 oldest=$3 who=$4 found
    if ! command -v "$command" >/dev/null; then
        may_install && echo "need-$command: installing $package with apt-get" && apt_install "$package" || {
            say_how "$command" "$package" "$who" >&2
            exit 1
        }
    fi
    found=$(version)
    if [ "$(printf '%s\n%s\n' "$oldest" "$found" | sort -V | head -n 1)" != "$oldest" ]; then
        echo "need-$command: $command $found is too old for the tests; install $oldest or later" >&2
        exit 1
    fi
    echo "need-$command: using $command $found"
}

say_how() {
    local command=$1 package=$2 who=$3 called=$1
    [ "$package" = "$command" ] || called="$command or $package"
    echo "need-$command: $command is missing and cannot be installed from here. Please install it:"
    if command -v apt-get >/dev/null; then
        echo "    sudo apt-get install $package"
    elif command -v dnf >/dev/null; then
        echo "    sudo dnf install $command"
    elif command -v apk >/dev/null; then
        echo "    sudo apk add $command"
    elif command -v pacman >/dev/null; then
        echo "    sudo pacman -S $command"
    elif command -v zypper >/dev/null; then
        echo "    sudo zypper install $command"
    elif command -v brew >/dev/null; then
        echo "    brew install $command"
    else
        echo "    with your system's package manager; the package is called $called"
    fi
    echo "It need not run: $who start servers of their own."
}
