package proxy

import "sync"

// mailbox is what other goroutines want the owner of something to do with it.
type mailbox struct {
	ring func() // wakes the owner; called once for all that it has not answered yet

	mu     sync.Mutex
	posted []func()
	rung   bool
	gone   bool // nothing posted runs any more
}

// post runs f in the owner's goroutine. It is false if the owner has ended.
func (m *mailbox) post(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone {
		return false
	}
	m.posted = append(m.posted, f)
	if !m.rung { // under the lock, for the bell is gone when gone is set
		m.rung = true
		m.ring()
	}
	return true
}

// do runs f in the owner's goroutine and waits for it, unless that has ended.
func (m *mailbox) do(f func()) bool {
	done := make(chan struct{})
	if !m.post(func() { f(); close(done) }) {
		return false
	}
	<-done
	return true
}

// answer runs what was posted.
func (m *mailbox) answer() {
	m.mu.Lock()
	posted := m.posted
	m.posted, m.rung = nil, false
	m.mu.Unlock()
	for _, f := range posted {
		f()
	}
}

// last runs what was posted, and takes nothing more.
func (m *mailbox) last() {
	m.mu.Lock()
	m.gone = true
	m.mu.Unlock()
	m.answer()
}
