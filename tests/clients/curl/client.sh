#!/usr/bin/env bash
# Attention Service by curl: client.sh SCENARIO HOST:PORT. Prints one line of JSON.
set -euo pipefail
scenario=$1
url=http://$2/v1/models/dot:attend

answer=$(mktemp)
trap 'rm -f "$answer"' EXIT

# Sends the document on stdin. --retry repeats what is answered by 429 or 503, when Retry-After says; --output keeps the
# last answer alone.
attend=(curl --silent --show-error --max-time 600 --retry 8 --data-binary @- --output "$answer" "$url")

case $scenario in
  unary | retry)
    "${attend[@]}" <<<'{"query": [[1, 0], [0, 1], [1, 1]], "outputs": ["output", "weights"]}'
    ;;
  stream) # one connection, a request after the other
    for id in {0..99}; do
      printf 'next\nurl = "%s"\nsilent\ndata = "{\\"query\\": [[%d, 1], [0, 1]]}"\nwrite-out = "\\n"\n' "$url" "$id"
    done | sed 1d | curl --config -
    ;;
  large) # base64 of little-endian float32: 30 MiB of ones
    {
      printf '{"query": {"shape": [2, 3932160], "data": "'
      printf '\0\0\200?%.0s' {1..15} | base64 --wrap 0 | awk '{for (i = 0; i < 524288; i++) printf "%s", $0}'
      printf '"}, "outputs": ["output"], "encoding": "base64"}'
    } | "${attend[@]}"
    ;;
  deadline)
    "${attend[@]}" --retry 0 --header 'x-request-timeout: 1' <<<'{"query": [[1, 0]]}'
    ;;
  cancel)
    "${attend[@]}" <<<'{"query": [[1, 0]]}' &
    read -r || true
    kill $!
    wait $! || echo '{"code": "CANCELLED"}'
    ;;
  errors)
    "${attend[@]}" <<<'{"query": [1, 0]}'
    ;;
esac
cat "$answer"
