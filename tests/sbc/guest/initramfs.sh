#!/bin/busybox sh
# The first program of the board: loads what the kernel needs to find its disks, arms the watchdog, mounts the root file
# system of the slot that U-Boot chose (mgota.slot=) and the /usr that all slots share, and hands over.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in $(cat /modules/order); do
    insmod "/modules/$module" $(cat "/modules/$module.options" 2>/dev/null) || echo "initramfs: $module failed"
done
for word in $(cat /proc/cmdline); do
    case $word in mgota.slot=*) slot=$(echo "${word#mgota.slot=}" | tr AB ab) ;; esac
done
: >/dev/watchdog # closed without a V it goes on counting: from here on, who does not come up is reset

# What udev does elsewhere: partitions by their label.
mkdir -p /dev/disk/by-partlabel
for entry in /sys/class/block/*/uevent; do
    label=$(sed -n 's/^PARTNAME=//p' "$entry")
    [ -z "$label" ] || ln -s "../../$(sed -n 's/^DEVNAME=//p' "$entry")" "/dev/disk/by-partlabel/$label"
done
mkdir -p /root
mount -t ext4 -o ro "/dev/disk/by-partlabel/slot-$slot" /root || exec reboot -f
mount -t ext4 -o ro /dev/vdb /root/usr || exec reboot -f
for each in dev proc sys; do mount --move "/$each" "/root/$each"; done
exec switch_root /root /sbin/init
echo "initramfs: there is no /sbin/init in slot $slot"
reboot -f
