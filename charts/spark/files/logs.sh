# shellcheck shell=sh
# Makes the directory of the event logs as soon as HDFS takes it.
until hadoop fs -mkdir -p /spark-history && hadoop fs -chmod 1777 /spark-history; do
  echo "waiting for HDFS"
  sleep 3
done
