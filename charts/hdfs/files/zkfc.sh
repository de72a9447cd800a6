# shellcheck shell=sh
# The failover controller of the NameNode beside it, once there is a place in ZooKeeper where the active one is written.
until hadoop zkfc -formatZK -nonInteractive || [ $? = 2 ]; do # 2: it is there
  echo "waiting for ZooKeeper"
  sleep 3
done
exec /etc/gridstead/services/hdfs-zkfc
