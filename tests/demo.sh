#!/usr/bin/env bash
# The main job on one machine: a chain of three nodes, a ping, a look, and a real Ansible module run by
# the node at the far end. Called by `make demo`, which builds the programs and the virtual environment first.
# Everything lives in a temporary directory; only the processes started here are ended.
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
bin=${RECEPTOR_BIN:-$top/target/release}
port=${RECEPTOR_DEMO_PORT:-8888}
export PATH="$bin:$top/.venv/bin:$PATH"
work=$(mktemp -d "${TMPDIR:-/tmp}/receptor-demo.XXXXXX")
export RECEPTOR_SOCKET="$work/receptor.sock"
pids=()

cleanup() {
    status=$?
    trap - EXIT
    if [ "$status" -ne 0 ]; then
        echo "== the demo failed (exit $status); what the nodes said:" >&2
        tail -n 20 "$work"/*.log >&2 || true
    fi
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$work"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say() { printf '\n== %s\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }
start() {
    local log=$1
    shift
    printf '$ %s &\n' "$*"
    "$@" 2>"$work/$log.log" &
    pids+=($!)
}
# Waits until a command succeeds, for at most 20 seconds.
await() {
    local deadline=$((SECONDS + 20))
    until "$@" >/dev/null 2>&1; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            echo "waited 20 s in vain for: $*" >&2
            "$@" >&2
            exit 1
        fi
        sleep 0.1
    done
}

say "Three nodes, each knowing only its neighbor: controller - node-a - node-b"
start controller receptord --node-id=controller -d "$work/controller" controller \
    --socket-path="$RECEPTOR_SOCKET" --listen-port="$port"
start node-a receptord --node-id=node-a -d "$work/node-a" node \
    --listen-port=$((port + 1)) --peer=localhost:"$port"
start node-b receptord --node-id=node-b -d "$work/node-b" node \
    --listen-port=$((port + 2)) --peer=localhost:$((port + 1))
await receptorctl ping node-b

say "node-b answers through node-a"
run receptorctl ping node-b --count 3 --interval 0.2
run receptorctl traceroute node-b

say "What the controller sees"
run receptorctl status
run receptorctl routes
run receptorctl capabilities

say "A real Ansible module on node-b, its events as they happen"
send=(receptorctl send --directive=runner:execute --recipient=node-b
    '{"module": "ping", "inventory": "localhost", "extravars": {"ansible_connection": "local"}, "host_pattern": "localhost"}')
printf '$ %s %s %s %s %s\n' "${send[@]:0:4}" "'${send[4]}'"
"${send[@]}" | tee "$work/events"
grep -q '"ping": *"pong"' "$work/events"

say "Done: exit code 0, \"ping\": \"pong\" seen. Cleaning up."
