package rc

import (
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// Request is one block request with memory of its own. It can be submitted again
// and again.
type Request struct {
	virtioblk.Header
	Len    int              // bytes of data to transfer, at most the size of the buffer
	Status virtioblk.Status // when it is done
	// Written is how many bytes the device says it wrote.
	Written uint32
	// Tag is the caller's, to know the request by when it is done.
	Tag int

	header, status, data uint64 // bus addresses

	size     int // of the buffer at data
	mem      *vringtest.Memory
	segments [3]vring.Segment

	headerBytes, statusByte []byte // as we see them
}

// unanswered is what a status reads as while the device has not written it.
const unanswered = 0xff

const page = 4096

// NewRequest returns a request with a contiguous buffer of size bytes, at a page.
// Its header lies right before the buffer, and its status right behind, so that
// a descriptor may cover more than one part.
func (q *Queue) NewRequest(size int) (*Request, error) {
	base, err := q.mem.Alloc(page+size+virtioblk.StatusLen, page)
	if err != nil {
		return nil, err
	}
	data := base + page
	return newRequest(q.mem, data-virtioblk.HeaderLen, data, data+uint64(size), size), nil
}

// lineLen is the room for a request's header and status, which share a cache line
// as they do in a driver.
const lineLen = 64

// NewRequests returns n requests as a driver lays them out that wants speed: each
// buffer of size bytes at a page, header and status in one cache line, and these
// lines side by side. Their tags are 0 to n-1. RequestsLen is the memory it takes.
func (q *Queue) NewRequests(n, size int) ([]*Request, error) {
	lines, err := q.mem.Alloc(n*lineLen, page)
	if err != nil {
		return nil, err
	}
	stride := bufferLen(size)
	data, err := q.mem.Alloc(n*stride, page)
	if err != nil {
		return nil, err
	}
	list := make([]*Request, n)
	for i := range list {
		line := lines + uint64(i*lineLen)
		list[i] = newRequest(q.mem, line, data+uint64(i*stride), line+virtioblk.HeaderLen, size)
		list[i].Tag = i
	}
	return list, nil
}

// RequestsLen returns how many bytes of guest memory NewRequests takes at most.
func RequestsLen(n, size int) int { return n*lineLen + n*bufferLen(size) + 2*page }

func bufferLen(size int) int { return (size + page - 1) &^ (page - 1) }

func newRequest(mem *vringtest.Memory, header, data, status uint64, size int) *Request {
	return &Request{
		Len: size, size: size, mem: mem, header: header, data: data, status: status,
		headerBytes: mem.Bytes(header, virtioblk.HeaderLen),
		statusByte:  mem.Bytes(status, virtioblk.StatusLen),
	}
}

// Data returns the request's buffer.
func (r *Request) Data() []byte { return r.mem.Bytes(r.data, r.size) }

// DataAddr returns the bus address of the request's buffer.
func (r *Request) DataAddr() uint64 { return r.data }

// HeaderAddr returns the bus address of the request's header.
func (r *Request) HeaderAddr() uint64 { return r.header }

// StatusAddr returns the bus address of the request's status.
func (r *Request) StatusAddr() uint64 { return r.status }
