set -e

# job WORK ADDRESS FIO-ARGUMENT... runs fio on the disk of the PCI device there.
job() {
	work=$1 address=$2
	shift 2
	disk=$(basename /sys/bus/pci/devices/0000:00:"$address".0/virtio*/block/*)
	echo "@@ $work $address"
	fio --filename=/dev/"$disk" "$@"
}

