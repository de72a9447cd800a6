# shellcheck shell=sh
# What a node of the test cluster has beyond a host: boot.sh reads this before it leaves the machine's files behind.
# shellcheck disable=SC2154 # root and files are boot.sh's
programs=$2 settings=$3 volumes=$4

# Control groups as this namespace sees them. Where the machine has hierarchies of single controllers, the kubelet wants these.
umount "$root/sys/fs/cgroup"
if grep -q '^[^ ]* [^ ]* cgroup ' /proc/mounts; then
  mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
  awk '$3 == "cgroup" { print $2, $4 }' /proc/mounts | while read -r place options; do
    place=$root/sys/fs/cgroup/${place##*/}
    case ,$options, in
      *,name=*) options=none,name=$(echo ",$options," | sed 's/.*,name=\([^,]*\),.*/\1/') ;;
      *) options=$(echo "$options" | tr , '\n' | grep -vxE 'rw|ro|relatime|nosuid|nodev|noexec' | paste -sd, -) ;;
    esac
    mkdir "$place"
    mount -t cgroup -o "$options" cgroup "$place"
  done
  mkdir "$root/sys/fs/cgroup/unified"
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified"
else
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
fi
: >"$root/dev/kmsg"
mount --bind /dev/kmsg "$root/dev/kmsg"

# The kubelet wants these values of settings that are the machine's: it is shown files instead, and finds nothing to change.
mkdir "$root/run/settings"
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  file=$root/run/settings/$(echo "${setting%=*}" | tr / .)
  echo "${setting#*=}" >"$file"
  mount --bind "$file" "$root/proc/sys/${setting%=*}"
done

# Containers are overlays themselves, which cannot lie on an overlay: they are kept on the machine's own file system.
for place in var/lib/containerd var/lib/kubelet var/lib/etcd var/log; do
  mkdir -p "$files/data/$place" "$root/$place"
  mount --bind "$files/data/$place" "$root/$place"
done
for pair in "$programs opt/kube" "$settings etc/kube" "$volumes var/lib/volumes"; do
  mkdir -p "$root/${pair#* }"
  mount --bind "${pair% *}" "$root/${pair#* }"
done
mount -o remount,bind,ro "$root/opt/kube"
mount -o remount,bind,ro "$root/etc/kube"
cp "$(dirname "$1")/kube_init.py" "$root/run/kube_init.py"
# shellcheck disable=SC2034 # boot.sh uses it
init="python3 /run/kube_init.py /etc/kube/$name.json"
