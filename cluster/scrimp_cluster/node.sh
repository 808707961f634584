#!/bin/sh
# Prepares a node of the cluster, as `ray up` does with each: node.sh STORAGE. The same again changes nothing.
set -eu
cd "$(dirname "$0")/../.."
sh cluster/scrimp_cluster/environment.sh

# What every login works with, so also the commands of `ray up` and `ray submit`. A node's address is the one at which
# ssh reached it. Its ports are fixed so that a firewall can keep them, and the head's 6379, among the nodes.
cat >node.env <<END
export PATH="$PWD/.venv/bin:\$PATH"
export SCRIMP_STORAGE="$1"
export RAY_AUTH_MODE=token
SCRIMP_ADDRESS=\${SSH_CONNECTION% *}
SCRIMP_RAY_START="--node-ip-address=\${SCRIMP_ADDRESS##* } --node-manager-port=6380 --object-manager-port=6381 \
--dashboard-agent-grpc-port=6382 --dashboard-agent-listen-port=6383 --runtime-env-agent-port=6384 \
--metrics-export-port=6385 --min-worker-port=10002 --max-worker-port=10999"
END
line=". $PWD/node.env"
grep -qxF "$line" ~/.bashrc 2>/dev/null || printf '\n%s\n' "$line" >>~/.bashrc
