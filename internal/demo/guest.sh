set -e
run() {
	echo "# $*"
	"$@"
}
run lsblk -o NAME,SIZE,RO,DISC-GRAN,LOG-SEC,PHY-SEC /dev/vda
echo "serial $(cat /sys/block/vda/serial)"
run mkfs.ext4 -q -E discard /dev/vda
run mount /dev/vda /mnt
echo "# write 160 MiB, read it back"
dd if=/dev/urandom of=/mnt/data bs=1M count=160 status=none
before=$(sha256sum </mnt/data)
sync
echo 3 >/proc/sys/vm/drop_caches
test "$before" = "$(sha256sum </mnt/data)" && echo "same: ${before%% *}"
echo "# delete it, and discard what is free"
rm /mnt/data
sync
fstrim -v /mnt
echo "written by Linux $(uname -r) at $(date -u)" >/mnt/hello
run umount /mnt
run e2fsck -fn /dev/vda
