#!/bin/sh
# First boot: every disk without anything on it gets a file system and a place, /data/1 and so on. A disk with anything on it stays as it is.
set -eu
number=0
# Not those of the host itself, which are empty after a stop.
for disk in $(lsblk --nodeps --noheadings --output NAME,TYPE,MODEL | awk '$2 == "disk" && !/Instance Storage/ { print $1 }' | sort); do
  [ -z "$(wipefs --noheadings "/dev/$disk")" ] || continue # a partition table or a file system
  number=$((number + 1))
  mkfs.ext4 -q -m 1 "/dev/$disk"
  mkdir -p "/data/$number"
  echo "UUID=$(blkid --output value --match-tag UUID "/dev/$disk") /data/$number ext4 noatime,nofail 0 2" >>/etc/fstab
  mount "/data/$number"
done
