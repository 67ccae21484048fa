package epfuser

import (
	"fmt"
	"strings"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/epfdev"
)

// Report says what a controller can do, and what that means for a function.
type Report struct {
	Name     string `json:"name"`
	Doorbell string `json:"doorbell"` // how notifications arrive
	Data     string `json:"data"`     // how data is moved
	Lines    []Line `json:"abilities"`
}

// Line is one ability.
type Line struct {
	What  string `json:"what"`
	Has   string `json:"has"`
	Means string `json:"means"`
}

// Report returns what the slot's controller can do.
func (s *Slot) Report() *Report {
	i := &s.info
	r := &Report{Name: s.e.name, Doorbell: s.doorbellMeans(), Data: s.dataMeans()}
	add := func(what, has, means string) { r.Lines = append(r.Lines, Line{what, has, means}) }
	add("MSI-X", has(i.Features&epfdev.HasMSIX), "one vector for each queue, one for configuration changes")
	add("capabilities", fmt.Sprintf("%d bytes free", i.CapsRoom), "the host finds the registers by them")
	add("doorbell", s.room.Doorbell.Kind.String(), r.Doorbell)
	add("BARs", s.barsHas(), fmt.Sprintf("sizes in steps of %d KiB", s.room.Granule>>10))
	ranges := "the doorbell needs a BAR that is as small as its page"
	if s.room.SubRanges {
		ranges = "the doorbell may be a part of a BAR"
	}
	add("sub-ranges", has(i.Features&epfdev.HasSubRange), ranges)
	add("DMA", s.dmaHas(), r.Data)
	add("window", fmt.Sprintf("%d KiB", i.WindowTotal>>10), "for interrupts, and for what the processor copies")
	link := "the host's reset is seen in the registers only"
	if i.Features&epfdev.HasLink != 0 {
		link = "the function is reset when the link goes down"
	}
	add("link events", has(i.Features&epfdev.HasLink), link)
	return r
}

func has(flag uint32) string {
	if flag != 0 {
		return "yes"
	}
	return "no"
}

// dataMeans says how data is moved.
func (s *Slot) dataMeans() string {
	switch {
	case s.e.opts.NoDMA:
		return "by the processor, as asked for"
	case s.info.Features&epfdev.HasDMA != 0:
		return "by DMA"
	case s.info.Status&epfdev.Initialized == 0:
		return "by DMA if there is any"
	}
	return "by the processor"
}

func (s *Slot) dmaHas() string {
	i := &s.info
	switch {
	case i.Features&epfdev.HasDMA == 0 && i.Status&epfdev.Initialized == 0:
		return "known once a host is there"
	case i.Features&epfdev.HasDMA == 0:
		return "no"
	}
	text := fmt.Sprintf("%d+%d channels", i.ChannelsTo, i.ChannelsFrom)
	if d := i.DMADriver(); d != "" {
		text = d + ", " + text
	}
	if i.DMAAlign > 1 {
		text += fmt.Sprintf(", in steps of %d bytes", i.DMAAlign)
	}
	return text
}

// doorbellMeans says how the function's notifications arrive.
func (s *Slot) doorbellMeans() string {
	switch s.room.Doorbell.Kind {
	case epc.DoorbellEach:
		return "an interrupt for each queue"
	case epc.DoorbellShared:
		return "one interrupt, which wakes all queues"
	}
	return "none, memory is looked at"
}

// barsHas lists the BARs that can be used.
func (s *Slot) barsHas() string {
	var parts []string
	for n, p := range s.room.BARs {
		text := fmt.Sprint(n)
		switch {
		case !p.Free:
			continue
		case p.Fixed != 0:
			text += fmt.Sprintf(" (%d KiB)", p.Fixed>>10)
		case p.Least != 0:
			text += fmt.Sprintf(" (from %d KiB)", p.Least>>10)
		}
		if p.Wide {
			text += " (64 bits)"
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}
