# shellcheck shell=sh
# The format guard: a namespace is made only where the name directory is empty and the release began without any volume of HDFS.
name=/var/lib/gridstead/hdfs/name
if [ -n "$(ls -A "$name" 2>/dev/null)" ]; then
  echo "$name holds a namespace: nothing to do"
  exit 0
fi
volumes=$(cat /config/format/volumes)
if [ -n "$volumes" ]; then
  echo "$name is empty, but this release has volumes of HDFS: $volumes." >&2
  echo "Nothing was formatted. Next: put a copy of the name directory back into $name; only if the data is really to be given up," >&2
  echo "delete these volume claims, and run helm upgrade." >&2
  exit 1
fi
exec hadoop namenode -format -nonInteractive -clusterid gridstead
