package epfbackend

// Die ends a function as the death of its process does: whatever its workers do, they
// go no further. What they have at the disk and on the link ends, and leads to nothing.
func (f *Function) Die() error {
	f.sampler.stop()
	f.sampler = nil
	f.leave()
	return nil
}
