#!/usr/bin/env bash
# Starts the server on the embedded models, shows an answer, and stays until Ctrl-C; with --once, ends after the answer.
# Ports: ATTENTION_REST_PORT and ATTENTION_GRPC_PORT, as for the server itself.
set -euo pipefail
cd "$(dirname "$0")/.."
sentence="I gave my cat Tater a toy"

ready=$(mktemp)
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; rm -f "$ready"' EXIT
.venv/bin/attention-server --log-level warning >"$ready" & server=$!
until grep -q '^ready ' "$ready"; do
  kill -0 "$server" 2>/dev/null || { wait "$server" || exit $?; exit 1; }
  sleep 0.05
done
rest=$(sed -n 's/^ready rest=\([^ ]*\).*/\1/p' "$ready") grpc=$(sed -n 's/.*grpc=//p' "$ready")

.venv/bin/attention-client attend "$sentence" --model multi-head --target "$grpc"
if [ "${1:-}" = --once ]; then
  echo "The answer came over gRPC from $grpc; the server has ended. \`make run\` keeps it for you, with its page and REST."
  exit 0
fi
cat <<EOF

Serving:
  page   http://$rest/                   (attention, step by step)
  REST   http://$rest/v1/models          (documentation: http://$rest/docs)
  gRPC   $grpc                          (attention.v1.AttentionService, health, reflection)
Try:
  curl http://$rest/v1/models/multi-head:attend -d '{"text": "$sentence", "outputs": ["weights", "predictions"]}'
EOF
echo "Ctrl-C stops it."
trap 'exit 0' INT TERM
wait "$server"
