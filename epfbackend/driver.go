package epfbackend

import (
	"fmt"
	"slices"

	"github.com/vblk-ep/vblk-ep/epfbackend/regfile"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

// This file is what the driver's decisions do: regfile.Handler.

// Negotiated implements regfile.Handler.
func (f *Function) Negotiated(accepted virtio.Features, config []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.accepted = accepted
	// Without the means to flush there must be no cache to flush (virtio 1.4
	// §5.2.5.2, §5.2.6.2).
	if !accepted.Has(virtioblk.Flush) {
		config[virtioblk.CfgWriteback] = 0
		f.writeback.Store(false)
	}
	if ok, held := f.news.allow(); ok {
		f.log.Info("features negotiated", "accepted", accepted.Describe(virtioblk.FeatureNames), "held_back", held)
	}
}

// StartQueue implements regfile.Handler.
func (f *Function) StartQueue(i int, q regfile.Queue) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ctl == nil {
		return
	}
	at := running
	if f.paused {
		at = paused
	}
	f.flushes.Store(false)
	f.workers[i] = startWorker(f, i, q, at)
}

// StopQueue implements regfile.Handler.
func (f *Function) StopQueue(i int) (done <-chan struct{}) {
	return f.stop(i, i+1)
}

// Stop implements regfile.Handler.
func (f *Function) Stop() (done <-chan struct{}) {
	return f.stop(0, f.opts.Queues)
}

// stop stops the queues from first up to end.
func (f *Function) stop(first, end int) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.record.stop()
	for i, w := range f.workers[first:end] {
		if w != nil {
			f.workers[first+i] = nil
			w.ask(stopped)
			f.ending = append(f.ending, w)
		}
	}
	f.ending = slices.DeleteFunc(f.ending, (*worker).ended)
	var stopping []*worker // also what a queue reset before this one stopped
	for _, w := range f.ending {
		if w.index >= first && w.index < end {
			stopping = append(stopping, w)
		}
	}
	done := make(chan struct{})
	f.background.Go(func() {
		for _, w := range stopping {
			<-w.gone
		}
		close(done)
		f.wake()
	})
	return done
}

// Notify implements regfile.Handler.
func (f *Function) Notify(i int) { f.bells[i].Ring() }

// WriteConfig implements regfile.Handler: only the write cache mode may be
// written (virtio 1.4 §5.2.5.2).
func (f *Function) WriteConfig(config []byte, off int, p []byte) {
	i := virtioblk.CfgWriteback - off
	f.mu.Lock()
	may := f.accepted.Has(virtioblk.ConfigWCE)
	f.mu.Unlock()
	if i < 0 || i >= len(p) || !may {
		return
	}
	on := p[i]&1 != 0
	config[virtioblk.CfgWriteback] = p[i] & 1
	if was := f.writeback.Swap(on); was && !on && !f.flushOwed.Swap(true) {
		f.background.Go(f.flushCache)
	}
}

// flushCache writes out what the cache held when the driver turned it off: no
// flush will follow. However often a driver turns it off, one runs at a time and
// one waits.
func (f *Function) flushCache() {
	f.flushing.Lock()
	defer f.flushing.Unlock()
	f.flushOwed.Store(false)
	if err := f.store.Flush(); err != nil {
		f.fail(fmt.Errorf("flush the disk: %w", err))
	}
}

// ResetConfig implements regfile.Handler.
func (f *Function) ResetConfig(config []byte) {
	config[virtioblk.CfgWriteback] = 1
	if f.opts.WriteThrough {
		config[virtioblk.CfgWriteback] = 0
	}
	f.writeback.Store(!f.opts.WriteThrough)
}
