# shellcheck shell=bash
# Well: the broker takes connections, and no partition of which it has a copy lacks that copy.
exec 3<>"/dev/tcp/$HOSTNAME/$PORT" || exit 1
number=${HOSTNAME##*-}
java -Xmx64m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp '/opt/gridstead/kafka/current/lib/*' org.apache.kafka.tools.TopicCommand \
  --bootstrap-server "$(hostname -f):$PORT" --describe --under-replicated-partitions 2>/dev/null >/tmp/behind || exit 1
! awk -F '\t' -v id="$((number + 1))" '
  function has(list) { return index("," list ",", "," id ",") }
  { kept = in_sync = ""
    for (i = 1; i <= NF; i++) {
      if ($i ~ /^ *Replicas: /) { kept = $i; sub(/^ *Replicas: /, "", kept) }
      if ($i ~ /^ *Isr: /) { in_sync = $i; sub(/^ *Isr: /, "", in_sync) }
    }
    if (has(kept) && !has(in_sync)) print }' /tmp/behind | grep .
