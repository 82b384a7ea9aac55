#!/usr/bin/env bash
# A Ray cluster of one machine, on loopback, with token authentication: the smallest place where
# `ray job submit` and Ray Serve behave as they do on many machines.
#
#     cluster/local.sh start               # prints how to submit a job to it
#     cluster/local.sh status              # whether it runs
#     eval "$(cluster/local.sh env)"       # this shell's ray and serve commands go to it
#     cluster/local.sh stop                # ends this cluster's processes and no others
#
# RECRANKER_RAY_PORT (6480) is the first of four ports: head, dashboard and jobs, Ray client, agent.
# Another number gives a second cluster beside the first. RECRANKER_RAY_CPUS limits the CPUs it takes.
# The token is ~/.ray/auth_token; it is made when there is none.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -x "$root/.venv/bin/ray" ]; then
    export PATH="$root/.venv/bin:$PATH" # jobs find the same python as this cluster
fi

port=${RECRANKER_RAY_PORT:-6480}
jobs=http://127.0.0.1:$((port + 1))
state=${TMPDIR:-/tmp}/recranker-ray-$port-$(id -u) # short: Ray's socket paths must stay under 108 bytes

# What its processes and its clients must agree on. The last one is Ray's switch for "one machine only":
# without it Ray swaps 127.0.0.1 for the machine's outer address and listens there.
environment="RAY_AUTH_MODE=token RAY_ADDRESS=127.0.0.1:$port RAY_API_SERVER_ADDRESS=$jobs RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0"

# The process that holds the cluster, if it still is the one that was started here.
leader() {
    local pid
    pid=$(cat "$state/pid" 2>/dev/null) || return 1
    tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q -- "--port=$port " || return 1
    echo "$pid"
}

start() {
    if leader >/dev/null; then
        echo "already running on port $port; end it with: cluster/local.sh stop" >&2
        exit 1
    fi
    mkdir -p -m 700 "$state"
    export ${environment?}
    ray get-auth-token --generate >/dev/null
    # A session of its own, so that `stop` can name its processes without touching another cluster.
    env -u RAY_ADDRESS RAY_USAGE_STATS_ENABLED=0 setsid ray start --head --block --port="$port" --temp-dir="$state" \
        --node-ip-address=127.0.0.1 --dashboard-host=127.0.0.1 --include-dashboard=true \
        --dashboard-port=$((port + 1)) --ray-client-server-port=$((port + 2)) \
        --dashboard-agent-listen-port=$((port + 3)) --disable-usage-stats \
        ${RECRANKER_RAY_CPUS:+--num-cpus="$RECRANKER_RAY_CPUS"} \
        >"$state/log" 2>&1 </dev/null &
    echo $! >"$state/pid"
    wait_until_ready
    echo "running; submit a job from the repository's root with:"
    echo "  RAY_AUTH_MODE=token ray job submit --address $jobs --working-dir . \\"
    echo "      --runtime-env cluster/runtime_env.yaml -- python -m jobs.pipeline jobs/configs/quickstart.toml"
    echo "or point this shell's ray and serve commands at it, with: eval \"\$(cluster/local.sh env)\""
}

wait_until_ready() {
    for _ in $(seq 90); do # tries of about two seconds
        if ! leader >/dev/null; then
            echo "the cluster ended while starting; its last lines ($state/log):" >&2
            tail -n 15 "$state/log" >&2
            exit 1
        fi
        if ray job list --address "$jobs" >/dev/null 2>&1; then
            return
        fi
        sleep 1
    done
    echo "the cluster takes no jobs after 90 tries; see $state/log" >&2
    exit 1
}

stop() {
    local pid
    if ! pid=$(leader); then
        echo "no cluster of this script on port $port"
        return
    fi
    kill -TERM "$pid"
    for _ in $(seq 30); do
        pgrep --session "$pid" >/dev/null || break
        sleep 1
    done
    pkill -KILL --session "$pid" || true # whatever outlived the half minute; the session holds this cluster only
    rm -rf "$state"
    echo "stopped"
}

case "${1:-}" in
start) start ;;
stop) stop ;;
env) echo "export $environment" ;;
status) leader >/dev/null && echo "running on port $port, jobs at $jobs" || { echo "not running"; exit 1; } ;;
*)
    sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
    ;;
esac
