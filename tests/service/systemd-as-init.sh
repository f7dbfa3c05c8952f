#!/bin/sh
# Runs inside fresh mount, pid, uts, ipc, net and cgroup namespaces, and becomes their systemd. See private_systemd.py.
#   $1  a scratch directory with: stage/ (empty), units/, bin/, etc/ (added to /etc), out/ (writable by anyone)
#   $2  the prefix of the Python to run; $3 its site-packages; $4 the checkout
# Whatever a unit may write lies on file systems that exist only here: nothing of the host is touched.
set -eu
scratch=$1 python=$2 packages=$3 checkout=$4
stage=$scratch/stage

mount --make-rprivate /
mount -t proc proc /proc

# The new /run is put together beside the old one and moved into place, since any of the sources may lie below /run.
mount -t tmpfs -o mode=755,size=128m stage "$stage"
mkdir -p "$stage/lab/checkout"
for source in "$scratch/units" "$scratch/bin" "$scratch/out" "$python" "$packages" \
    "$checkout/skewd" "$checkout/sidecar" "$checkout/pipeline_ref"; do
    case $source in
        "$python") name=python ;;
        "$packages") name=packages ;;
        "$checkout"/*) name=checkout/${source##*/} ;;
        *) name=${source##*/} ;;
    esac
    mkdir "$stage/lab/$name"
    mount --bind "$source" "$stage/lab/$name"
done
cp -a /etc "$stage/lab/etc"
cp -R "$scratch/etc/." "$stage/lab/etc"
mount --no-mtab --move "$stage" /run
mount --bind /run/lab/etc /etc
for private in /tmp /var/tmp /var/lib /var/log; do
    mount -t tmpfs -o mode=1777,size=64m private "$private"
done
chmod 755 /var/lib /var/log
systemd-sysusers /run/lab/units/skewd.sysusers

# The cgroup file systems as this namespace sees them, with the layout the host has.
umount -R /sys/fs/cgroup 2>/dev/null || true
if grep -q name=systemd /proc/self/cgroup; then
    mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
    mkdir /sys/fs/cgroup/unified /sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
else
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi

# A container's manager leaves it so, and systemd counts on it: credentials are mounted by a child and propagate.
mount --make-rshared /

for init in /usr/lib/systemd/systemd /lib/systemd/systemd; do
    # No unit and no generator of the host: only what the test wrote.
    [ -x "$init" ] && exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        SYSTEMD_UNIT_PATH=/run/lab/units SYSTEMD_GENERATOR_PATH=/run/lab/none \
        SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/run/lab/none \
        "$init" --system --unit=lab.target --log-target=console --log-level=info --show-status=0
done
echo "no systemd found" >&2
exit 1
