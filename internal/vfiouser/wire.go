package vfiouser

import (
	"encoding/binary"
	"errors"
	"fmt"
)

var le = binary.LittleEndian

// Command is a vfio-user command number (vfio-user, "Commands").
type Command uint16

// The commands. DMARead and DMAWrite go from the server to the client, all
// others from the client to the server.
const (
	CmdVersion          Command = 1
	CmdDMAMap           Command = 2
	CmdDMAUnmap         Command = 3
	CmdGetInfo          Command = 4
	CmdGetRegionInfo    Command = 5
	CmdGetRegionIOFDs   Command = 6
	CmdGetIRQInfo       Command = 7
	CmdSetIRQs          Command = 8
	CmdRegionRead       Command = 9
	CmdRegionWrite      Command = 10
	CmdDMARead          Command = 11
	CmdDMAWrite         Command = 12
	CmdReset            Command = 13
	CmdRegionWriteMulti Command = 15
)

// Flags of a message header (vfio-user, "Header").
const (
	FlagTypeMask uint32 = 0xf
	FlagCommand  uint32 = 0x0
	FlagReply    uint32 = 0x1
	FlagNoReply  uint32 = 0x10
	FlagError    uint32 = 0x20
)

// Limits of this implementation; a peer is told of them in the version message.
const (
	// MaxTransfer is the largest data part of a message in bytes
	// (max_data_xfer_size), the protocol's default.
	MaxTransfer = 1 << 20
	// MaxFDs is the largest number of descriptors in a message (max_msg_fds).
	MaxFDs = 16
	// MaxMessage is the largest message taken in bytes, header included.
	MaxMessage = HeaderSize + regionAccessSize + MaxTransfer
)

// HeaderSize is the size of the header of every message in bytes.
const HeaderSize = 16

// ErrMalformed reports a message that is too short for what it says it is, or
// that says something the protocol forbids.
var ErrMalformed = errors.New("malformed message")

// Header precedes every message (vfio-user, "Header").
type Header struct {
	ID      uint16 // chosen by the sender of a command, echoed in the reply
	Command Command
	Size    uint32 // of the whole message in bytes
	Flags   uint32
	Errno   uint32 // in a reply with FlagError
}

// Put encodes the header into the first HeaderSize bytes of b.
func (h Header) Put(b []byte) {
	_ = b[HeaderSize-1]
	le.PutUint16(b[0:], h.ID)
	le.PutUint16(b[2:], uint16(h.Command))
	le.PutUint32(b[4:], h.Size)
	le.PutUint32(b[8:], h.Flags)
	le.PutUint32(b[12:], h.Errno)
}

// ParseHeader decodes the first HeaderSize bytes of b.
func ParseHeader(b []byte) Header {
	_ = b[HeaderSize-1]
	return Header{
		ID:      le.Uint16(b[0:]),
		Command: Command(le.Uint16(b[2:])),
		Size:    le.Uint32(b[4:]),
		Flags:   le.Uint32(b[8:]),
		Errno:   le.Uint32(b[12:]),
	}
}

// IsReply says whether the message answers a command.
func (h Header) IsReply() bool { return h.Flags&FlagTypeMask == FlagReply }

// NoReply says whether the sender of a command wants no answer.
func (h Header) NoReply() bool { return h.Flags&FlagNoReply != 0 }

// check refuses what makes the rest of the stream unreadable.
func (h Header) check() error {
	if h.Size < HeaderSize || h.Size > MaxMessage {
		return fmt.Errorf("%w: command %d has a size of %d bytes", ErrMalformed, h.Command, h.Size)
	}
	if t := h.Flags & FlagTypeMask; t != FlagCommand && t != FlagReply {
		return fmt.Errorf("%w: command %d is of type %d", ErrMalformed, h.Command, t)
	}
	return nil
}

// need reports a payload of b that is shorter than n bytes.
func need(b []byte, n int, what string) error {
	if len(b) < n {
		return fmt.Errorf("%w: %s has %d bytes, needs %d", ErrMalformed, what, len(b), n)
	}
	return nil
}
