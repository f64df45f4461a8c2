#!/usr/bin/env bash
# Three machines on one, made of namespaces: each has its own network, its own disk and its own name.
#
#   machines.sh network COMMAND...                   a network with machines 2 to 4; COMMAND is its relay
#   machines.sh run NUMBER VENV CHECKOUT COMMAND...  COMMAND on one of the machines
#
# Called as root of the namespaces in which `network` runs: see nodes.py.
set -euo pipefail

lan=10.77.0

network() {
    mount --make-rprivate /
    mount -t tmpfs tmpfs /run # Here `ip netns` keeps its names.
    ip link set lo up
    ip link add lan type bridge
    ip address add $lan.1/24 dev lan
    ip link set lan up
    for number in 2 3 4; do
        ip netns add m$number
        ip link add lan$number master lan up type veth peer name eth0 netns m$number
        ip -n m$number link set lo up
        ip -n m$number address add $lan.$number/24 dev eth0
        ip -n m$number link set eth0 up
        # Nothing is out there; a program that looks for its own address asks the route to it.
        ip -n m$number route add default via $lan.1
    done
    exec "$@"
}

run() {
    number=$1
    shift
    exec nsenter --net=/run/netns/m"$number" unshare --mount --uts "$0" disk "$number" "$@"
}

# What is installed can be read, the checkout is not there, and only /tmp can be written: a disk of its own.
disk() {
    number=$1 venv=$2 checkout=$3
    shift 3
    echo machine"$number" >/proc/sys/kernel/hostname
    mount --bind "$venv" /mnt
    mount -t tmpfs tmpfs /tmp
    mkdir -p "$checkout" /tmp/home
    mount -t tmpfs tmpfs "$checkout"
    mkdir -p "$venv"
    mount --move /mnt "$venv"
    # The environment without this project: what an image holds that was made from the lock.
    for trace in "$venv"/lib/python3*/site-packages/manta_llm-*.dist-info; do
        mount -t tmpfs tmpfs "$trace"
    done
    printf '%s\n' '127.0.0.1 localhost' "$lan.$number machine$number" >/tmp/hosts
    mount --bind /tmp/hosts /etc/hosts
    mount -o remount,bind,ro /
    cd /tmp
    exec "$@"
}

"$@"
