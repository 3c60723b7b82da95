#!/bin/busybox sh
# All there is on the board with NOR flash: an initramfs with Python and mgota, and the driver of its flash memory.
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin HOME=/
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
ifconfig lo 127.0.0.1 up
for module in $(cat /modules/order); do
    insmod "/modules/$module" || echo "initramfs: $module failed"
done
for _ in 1 2 3 4 5 6 7 8 9 10; do
    [ -e /dev/mtd0 ] && break
    sleep 1
done
cd /app
python3.11 -m nor
echo "nor: ended with $?"
sleep 100000
