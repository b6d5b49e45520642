package pipeline

import "time"

// read is the reader. It completes calls as their replies come, and leaves the
// connection to callers who are alone as long as there are only such.
func (l *link[R]) read() {
	if l.pushes != nil {
		defer close(l.pushes)
	}
	watch := time.NewTimer(idleAfter)
	defer watch.Stop()
	for l.awake(watch) {
		n, err := l.dispatch()
		if err == nil && l.progress(n) {
			err = l.in.fill()
		}
		if err != nil {
			l.fail(err)
		}
	}
}

// awake waits while the reader is parked; false is that the link has failed and
// nobody else reads.
func (l *link[R]) awake(watch *time.Timer) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.parked || l.err != nil {
		switch {
		case l.err == nil:
			l.parkLocked(watch)
		case l.alone:
			l.pause(l.wakeReader, nil)
		default:
			return false
		}
	}
	return true
}

// parkLocked waits for somebody to wake the reader. When the link has not been used
// for a while the reader takes it back, so that the end of an idle one is seen.
func (l *link[R]) parkLocked(watch *time.Timer) {
	l.mu.Unlock()
	watch.Reset(idleAfter)
	idle := false
	select {
	case <-l.wakeReader:
	case <-l.dead:
	case <-watch.C:
		idle = true
	}
	l.mu.Lock()
	if idle && !l.alone && !l.used {
		l.parked = false
	}
	if idle {
		l.used = false
	}
}

// dispatch completes what the replies that have arrived complete, and returns how
// many calls that were.
func (l *link[R]) dispatch() (finished int, err error) {
	defer rescue(&err)
	for {
		v, ok, err := l.in.have()
		bad, isBad := err.(*badReply)
		switch {
		case err != nil && !isBad:
			return finished, err
		case !ok:
			return finished, nil
		case !isBad && l.p.cfg.isPush(v):
			l.push(v)
			continue
		}
		l.p.stats.replies.Add(1)
		if l.ids != nil {
			if l.answer(v, err) {
				finished++
			}
			continue
		}
		c := l.oldest()
		if c == nil {
			return finished, errUnasked
		}
		c.replies = append(c.replies, v)
		if isBad || len(c.replies) == c.want {
			l.at++
			finished++
			l.complete(c, bad)
		}
	}
}

// oldest is the call whose reply comes next.
func (l *link[R]) oldest() *call[R] {
	if l.at == len(l.taken) {
		clear(l.taken)
		l.mu.Lock()
		l.taken, l.flight, l.at = l.flight, l.taken[:0], 0
		l.mu.Unlock()
	}
	if len(l.taken) == 0 {
		return nil
	}
	return l.taken[l.at]
}

func (l *link[R]) complete(c *call[R], bad *badReply) {
	var err error
	if bad != nil {
		err = &Error{Replied, l.peer.name, bad.error}
	}
	if !c.finish(sent, err) {
		l.p.stats.dropped.Add(1)
		l.p.recycle(c)
	}
}

// answer completes the call whose number the reply repeats. One of nobody's, or of
// somebody who has not been sent yet, is counted.
func (l *link[R]) answer(v R, err error) bool {
	id, _ := l.p.cfg.ID(v)
	l.mu.Lock()
	c := l.ids[id]
	if c != nil && c.state.Load() != sent && c.state.Load() != abandoned {
		c = nil
	}
	if c != nil {
		delete(l.ids, id)
	}
	l.mu.Unlock()
	if c == nil {
		l.p.stats.unasked.Add(1)
		return false
	}
	bad, _ := err.(*badReply)
	c.replies = append(c.replies, v)
	l.complete(c, bad)
	return true
}

// progress counts what was completed; false is that the reader is parked.
func (l *link[R]) progress(finished int) bool {
	l.mu.Lock()
	if finished > 0 {
		l.releaseLocked(finished)
		if l.count > 0 {
			l.watchLocked()
		}
	}
	if l.count == 0 {
		switch {
		case finished == 1:
			l.single++
		case finished > 1:
			l.single = 0
		}
		l.in.rest()
	}
	park := l.count == 0 && l.single >= lonely && l.p.cfg.OnPush == nil
	if park {
		l.parked, l.used, l.single = true, true, 0
	}
	wake := l.wakeWriterLocked()
	l.mu.Unlock()
	if wake {
		signal(l.wakeWriter)
	}
	return !park
}

// watchLocked sets anew when the link will be late: there was progress.
func (l *link[R]) watchLocked() {
	var slow time.Duration
	for _, list := range [][]*call[R]{l.taken[l.at:], l.flight, l.queue} {
		if len(list) > 0 {
			slow = list[0].slow
			break
		}
	}
	l.watch(slow)
}
