#!/bin/sh
# Boots one host: runs as PID 1 of namespaces of its own, lays the host's file systems, and becomes its systemd.
# The holder gives it a network meanwhile: it reads our process id from our output, and answers with a line.
set -eu
name=$1 image=$2 files=$3 address=$4 gateway=$5 withheld=$6 init=/sbin/init
shift 6 # what is left is a script for another kind of host, which may set init, and its arguments
read -r pid _ </proc/self/stat # /proc is still the machine's, so this is our process id as the machine knows it
echo "$pid"
read -r _
exec >>"$files/console.log" 2>&1

echo "$name" >/proc/sys/kernel/hostname
ip link set lo up
ip address add "$address" dev eth0
ip link set eth0 up
ip route add default via "$gateway"

root=$files/root
mount -t overlay -o "lowerdir=$image,upperdir=$files/upper,workdir=$files/work" overlay "$root"

# What is the machine's own is read-only: kernel settings but the network's, which each network namespace has for itself.
mount -t proc -o nosuid,noexec,nodev proc "$root/proc"
for part in sys sysrq-trigger irq bus fs; do
  [ ! -e "$root/proc/$part" ] || mount --bind "$root/proc/$part" "$root/proc/$part"
done
mount --bind "$root/proc/sys/net" "$root/proc/sys/net"
for part in sys sysrq-trigger irq bus fs; do
  [ ! -e "$root/proc/$part" ] || mount -o remount,bind,ro "$root/proc/$part"
done
mount -t sysfs -o ro,nosuid,noexec,nodev sysfs "$root/sys"
mount -t cgroup2 -o nosuid,noexec,nodev cgroup2 "$root/sys/fs/cgroup"

mount -t tmpfs -o mode=755,size=4m tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
for device in null zero full random urandom tty; do
  : >"$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"

# The kernel's boot id is the machine's; with one of its own, a host that was rebooted can be told from one that was not.
cat /proc/sys/kernel/random/uuid >"$root/run/boot_id"
mount --bind -o ro "$root/run/boot_id" "$root/proc/sys/kernel/random/boot_id"

if [ $# -gt 0 ]; then
  # shellcheck source=tests/lab/kube-boot.sh
  . "$1"
fi

cd "$root"
mkdir -p .machine
pivot_root . .machine
umount -l /.machine
rmdir /.machine
# shellcheck disable=SC2086 # init may have arguments
exec setpriv --bounding-set "$withheld" \
  env -i container=lab PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin $init </dev/null
