package holdfast

import (
	"sync"
	"time"
)

// Budget bounds retries to a share of the requests of the last ten seconds plus
// a reserve, so that an outage is not multiplied by those who suffer it
// (Finagle's retry budget: 20 % and 10 a second, credits live 10 s). The zero
// Budget is ready, safe for concurrent use, and may be shared by Clusters.
type Budget struct {
	Percent   int // of requests that may be retried; 0 means 20, negative takes the limit off
	PerSecond int // retries a second that are always granted; 0 means 10

	mu     sync.Mutex // guards what follows
	second int64      // the slot that is being filled
	slots  [budgetWindow]int64
	sum    int64 // of slots, in hundredths of a retry
}

const budgetWindow = 10 // seconds

func (b *Budget) unlimited() bool { return b.Percent < 0 }

// Deposit notes one request. A Cluster does it for each operation of its own; it is for
// those who repeat requests by other means.
func (b *Budget) Deposit() {
	if b.unlimited() {
		return
	}
	b.mu.Lock()
	b.addLocked(int64(or(b.Percent, 20)))
	b.mu.Unlock()
}

// Withdraw takes one retry, if there is one.
func (b *Budget) Withdraw() bool {
	if b.unlimited() {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advanceLocked()
	reserve := int64(or(b.PerSecond, 10)) * budgetWindow * 100
	if b.sum+reserve < 100 {
		return false
	}
	b.addLocked(-100)
	return true
}

func (b *Budget) addLocked(n int64) {
	b.advanceLocked()
	b.slots[b.second%budgetWindow] += n
	b.sum += n
}

// advanceLocked lets the slots older than the window expire.
func (b *Budget) advanceLocked() {
	now := int64(clock() / time.Second)
	for range min(now-b.second, budgetWindow) {
		b.second++
		slot := &b.slots[b.second%budgetWindow]
		b.sum -= *slot
		*slot = 0
	}
	b.second = now
}
