#!/usr/bin/busybox sh
# The init of a slot: what every version of the board's system does before its application starts.
export PATH=/usr/bin:/usr/sbin HOME=/run
mount -t tmpfs tmp /run
mount -t tmpfs tmp /tmp
mkdir -p /run/lock
mount -t ext4 -o rw,nodev /dev/disk/by-partlabel/data /data || echo "init: no data"
ifconfig lo 127.0.0.1 up
grep -q '"network": false' /app/behaviour.json || { ifconfig eth0 10.0.2.15 up && route add default gw 10.0.2.2; }
cd /app
python3.11 -m board
echo "init: the application ended with $?"
echo b >/proc/sysrq-trigger
