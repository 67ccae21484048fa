package vfiouser

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/shm"
	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
)

// barMemory is the memory of a BAR that the client maps into its guest: what the
// guest does there, we are not told.
type barMemory struct {
	fd      int
	mapping *shm.Mapping
	areas   []vfiouser.Area

	// messages counts accesses that came as messages all the same: the client
	// did not use its mapping.
	messages atomic.Uint64
}

func newBARMemory(index int, bar epc.BAR) (*barMemory, error) {
	fd, mapping, err := shm.NewMemory(fmt.Sprintf("bar%d", index), int(bar.Size))
	if err != nil {
		return nil, err
	}
	m := &barMemory{fd: fd, mapping: mapping}
	if err := shm.Seal(fd); err != nil {
		m.close()
		return nil, err
	}
	for _, a := range bar.Memory {
		m.areas = append(m.areas, vfiouser.Area{Offset: a.Offset, Size: a.Size})
	}
	return m, nil
}

func (m *barMemory) close() {
	_ = m.mapping.Close()
	_ = unix.Close(m.fd)
}

func (m *barMemory) read(p []byte, off uint64) {
	m.messages.Add(1)
	shm.Of(m.mapping.Bytes()).Read(p, int(off))
}

func (m *barMemory) write(off uint64, p []byte) {
	m.messages.Add(1)
	shm.Of(m.mapping.Bytes()).Write(int(off), p)
}

func (s *session) releaseBARs() {
	for i, m := range s.bars {
		if m == nil {
			continue
		}
		s.log.Info("accesses to BAR memory that came as messages", "bar", i, "count", m.messages.Load())
		m.close()
		s.bars[i] = nil
	}
}
