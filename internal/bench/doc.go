// Package bench is a load generator for virtio-blk functions: a host with a driver
// (package rc) that keeps a number of requests in flight and measures what comes
// back. It works against any server of vfio-user, ours or another's.
//
// A Target is the function, up and running. Run executes a Job on it: one Lane a
// queue, each on a thread of its own, which submits in batches, kicks once a
// batch, reaps in bulk, and allocates nothing. Verification writes blocks that
// tell where and when they were written, and finds every one that is lost, torn,
// stale or misplaced.
//
// The package writes to a disk only in jobs that say so. It knows no command line
// and starts no servers.
package bench
