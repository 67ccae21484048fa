package vm

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The layout of a FAT16 volume (Microsoft's FAT specification, 1.03): boot
// sector, two tables, the root folder, and clusters from number 2 on.
const (
	fatReserved    = 1
	fatTables      = 2
	fatRootSectors = 32
	fatEntrySize   = 32
	fatMinClusters = 4085 // with fewer, readers take it for FAT12
	fatMaxClusters = 65524

	fatFirst  = 2      // number of the first cluster
	fatEnd    = 0xffff // ends a chain
	fatFolder = 0x10   // attribute of a folder
	fatFile   = 0x20   // attribute of a file
)

// fatVolume is a FAT16 volume that is being filled.
type fatVolume struct {
	perCluster int      // sectors
	table      []uint16 // by cluster number
	data       []byte   // the clusters that are in use
}

// fatImage makes a FAT16 volume with the files (path with slashes → content)
// for a partition that starts at the sector. Names have the form 8.3, in
// capitals, and a folder has at most 14 entries.
func fatImage(files map[string][]byte, start uint32) ([]byte, error) {
	v := &fatVolume{perCluster: 1, table: []uint16{0xff00 | fatMedia, fatEnd}}
	clusters := v.need(files)
	for ; clusters > fatMaxClusters; clusters = v.need(files) {
		v.perCluster *= 2
		if v.perCluster > 64 {
			return nil, fmt.Errorf("vm: the files do not fit into a FAT16 volume")
		}
	}
	clusters = max(clusters, fatMinClusters)
	root, err := v.entries(files, 0)
	if err != nil {
		return nil, err
	}
	tableSectors := (2*(fatFirst+clusters) + sectorSize - 1) / sectorSize
	rootAt := (fatReserved + fatTables*tableSectors) * sectorSize
	dataAt := rootAt + fatRootSectors*sectorSize
	out := make([]byte, dataAt+clusters*v.clusterSize())
	v.bootSector(out, start, tableSectors)
	for n := range fatTables {
		at := (fatReserved + n*tableSectors) * sectorSize
		for i, next := range v.table {
			binary.LittleEndian.PutUint16(out[at+2*i:], next)
		}
	}
	copy(out[rootAt:dataAt], root)
	copy(out[dataAt:], v.data)
	return out, nil
}

// fatMedia says that the volume is on a disk that stays.
const fatMedia = 0xf8

func (v *fatVolume) clusterSize() int { return v.perCluster * sectorSize }

// need returns how many clusters the files take at most: each file its own,
// and each of its folders one.
func (v *fatVolume) need(files map[string][]byte) int {
	n := 0
	for name, data := range files {
		n += 1 + len(data)/v.clusterSize() + strings.Count(name, "/")
	}
	return n
}

// bootSector writes the volume's parameters.
func (v *fatVolume) bootSector(out []byte, start uint32, tableSectors int) {
	copy(out, []byte{0xeb, 0x3c, 0x90}) // a jump over the parameters
	copy(out[3:], "VBLK-EP ")
	binary.LittleEndian.PutUint16(out[11:], sectorSize)
	out[13] = byte(v.perCluster)
	binary.LittleEndian.PutUint16(out[14:], fatReserved)
	out[16] = fatTables
	binary.LittleEndian.PutUint16(out[17:], fatRootSectors*sectorSize/fatEntrySize)
	out[21] = fatMedia
	binary.LittleEndian.PutUint16(out[22:], uint16(tableSectors))
	binary.LittleEndian.PutUint16(out[24:], 63)  // sectors a track
	binary.LittleEndian.PutUint16(out[26:], 255) // heads
	binary.LittleEndian.PutUint32(out[28:], start)
	binary.LittleEndian.PutUint32(out[32:], uint32(len(out)/sectorSize))
	out[36], out[38] = 0x80, 0x29                       // disk number; the fields below are there
	binary.LittleEndian.PutUint32(out[39:], 0x766c6b31) // serial number
	copy(out[43:], "NO NAME    FAT16   ")
	out[510], out[511] = 0x55, 0xaa
}

// store puts the data into new clusters and returns the first one's number,
// which is 0 when there is no data.
func (v *fatVolume) store(data []byte) uint16 {
	if len(data) == 0 {
		return 0
	}
	first := len(v.table)
	for rest := len(data); rest > 0; rest -= v.clusterSize() {
		v.table = append(v.table, uint16(len(v.table)+1))
	}
	v.table[len(v.table)-1] = fatEnd
	v.data = append(v.data, data...)
	v.data = append(v.data, make([]byte, (len(v.table)-fatFirst)*v.clusterSize()-len(v.data))...)
	return uint16(first)
}

// entries stores the files and returns the folder that lists them; self is the
// folder's own cluster, and 0 for the root.
func (v *fatVolume) entries(files map[string][]byte, self uint16) ([]byte, error) {
	folders := make(map[string]map[string][]byte)
	here := make(map[string][]byte)
	for name, data := range files {
		if dir, rest, below := strings.Cut(name, "/"); below {
			if folders[dir] == nil {
				folders[dir] = make(map[string][]byte)
			}
			folders[dir][rest] = data
		} else {
			here[name] = data
		}
	}
	if len(folders)+len(here) > 14 {
		return nil, fmt.Errorf("vm: a folder of %d entries", len(folders)+len(here))
	}
	var list []byte
	for _, name := range slices.Sorted(maps.Keys(folders)) {
		short, err := fatName(name)
		if err != nil {
			return nil, err
		}
		child := v.store(make([]byte, sectorSize)) // filled in when its entries are known
		below, err := v.entries(folders[name], child)
		if err != nil {
			return nil, err
		}
		below = slices.Concat(fatEntry(".          ", fatFolder, child, 0),
			fatEntry("..         ", fatFolder, self, 0), below)
		copy(v.data[int(child-fatFirst)*v.clusterSize():], below)
		list = append(list, fatEntry(short, fatFolder, child, 0)...)
	}
	for _, name := range slices.Sorted(maps.Keys(here)) {
		short, err := fatName(name)
		if err != nil {
			return nil, err
		}
		list = append(list, fatEntry(short, fatFile, v.store(here[name]), len(here[name]))...)
	}
	return list, nil
}

// fatName pads a name of the form 8.3 as folders have it.
func fatName(name string) (string, error) {
	base, extension, _ := strings.Cut(name, ".")
	if base == "" || len(base) > 8 || len(extension) > 3 || name != strings.ToUpper(name) ||
		strings.ContainsAny(extension, ".") {
		return "", fmt.Errorf("vm: %q is not a name of the form 8.3 in capitals", name)
	}
	return fmt.Sprintf("%-8s%-3s", base, extension), nil
}

// fatEntry is one entry of a folder.
func fatEntry(short string, attribute byte, cluster uint16, size int) []byte {
	const firstOfJanuary1980 = 0x21
	e := make([]byte, fatEntrySize)
	copy(e, short)
	e[11] = attribute
	binary.LittleEndian.PutUint16(e[16:], firstOfJanuary1980)
	binary.LittleEndian.PutUint16(e[24:], firstOfJanuary1980)
	binary.LittleEndian.PutUint16(e[26:], cluster)
	binary.LittleEndian.PutUint32(e[28:], uint32(size))
	return e
}
