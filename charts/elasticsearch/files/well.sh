# shellcheck shell=bash
# Well: every copy of every shard is there; or another node is away, and this one has all that it is to have.
exec 3<>"/dev/tcp/127.0.0.1/$PORT" || exit 1
printf 'GET /_cluster/health HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3
health=$(cat <&3)
of() { printf '%s' "$health" | sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p"; }
case $health in *'"status":"green"'*) exit 0 ;; esac
[ "$(of number_of_nodes)" -lt "$REPLICAS" ] && [ "$(of initializing_shards)" = 0 ]
