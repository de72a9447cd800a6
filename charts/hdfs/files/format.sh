# shellcheck shell=sh
# The format guard: a namespace is made only where the name directory is empty and the release began without any volume of HDFS. Of several
# NameNodes the first makes it, and only where no journal has one; the others, and one that lost its volume, copy it.
name=/var/lib/gridstead/hdfs/name
volumes=$(cat /config/format/volumes)
if [ "$NAMENODES" -gt 1 ] && [ -z "$(find "$name" -name 'fsimage_*' -o -name 'edits_*' 2>/dev/null)" ]; then
  rm -rf "${name:?}"/* # of a copy that was interrupted
fi
if [ -n "$(ls -A "$name" 2>/dev/null)" ]; then
  echo "$name holds a namespace: nothing to do"
  exit 0
fi
pod=$(hostname)
if [ "$NAMENODES" -gt 1 ]; then
  while :; do
    if [ "${pod##*-}" = 0 ] && [ -z "$volumes" ]; then
      hadoop namenode -format -nonInteractive -clusterid gridstead && exit 0
    fi
    hadoop namenode -bootstrapStandby -nonInteractive && exit 0
    echo "$name is empty; waiting for a NameNode from which it can be copied"
    [ -z "$volumes" ] || echo "This release has volumes of HDFS, so none is made: $volumes. If no NameNode has its volume, put a copy back into $name."
    sleep 3
  done
fi
if [ -n "$volumes" ]; then
  echo "$name is empty, but this release has volumes of HDFS: $volumes." >&2
  echo "Nothing was formatted. Next: put a copy of the name directory back into $name; only if the data is really to be given up," >&2
  echo "delete these volume claims, and run helm upgrade." >&2
  exit 1
fi
exec hadoop namenode -format -nonInteractive -clusterid gridstead
