package pipeline

import (
	"context"
	"time"
)

// maxLone is the largest request that a caller writes itself: a connection with
// nothing under way takes that much without waiting.
const maxLone = 16 << 10

// beAlone makes the caller of c the one who writes and reads, if nobody else does.
func (l *link[R]) beAlone(c *call[R]) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.parked || l.alone || l.count > 0 || l.writing || l.err != nil || l.draining || len(c.buf) > maxLone {
		return false
	}
	c.link = l
	c.state.Store(sent)
	l.handed += uint64(len(c.buf))
	c.end = l.handed
	l.alone, l.used, l.writing = true, true, true
	l.startLocked(c)
	return true
}

// exchange writes the request of a caller who is alone, and reads its reply. Others
// may join meanwhile: the writer sends what they want, and the reader takes over when
// this caller is done. left is that its context has ended, and the call is the link's.
func (l *link[R]) exchange(ctx context.Context, c *call[R]) (err error, left bool) {
	stop := func() bool { return true }
	if ctx.Done() != nil {
		l.sending.Store(true)
		stop = context.AfterFunc(ctx, l.interrupt)
	}
	n, err := l.conn.Write(c.buf)
	l.sending.Store(false)
	if l.written(n) {
		signal(l.wakeWriter)
	}
	l.p.stats.writes.Add(1)
	if err == nil {
		err = l.receive(c)
	}
	if !stop() {
		<-l.interrupted
		l.conn.SetDeadline(time.Time{})
		left = err != nil && n == len(c.buf) && timedOut(err)
	}
	if err != nil {
		err = l.blame(ctx, c, err, left)
	}
	l.goOn(c, left)
	return err, left
}

// blame is the error of a call that was alone.
func (l *link[R]) blame(ctx context.Context, c *call[R], err error, left bool) error {
	if left {
		return &Error{Unknown, l.peer.name, ended(ctx)}
	}
	if bad, ok := err.(*badReply); ok {
		return &Error{Replied, l.peer.name, bad.error}
	}
	l.fail(err)
	return l.describe(ctx, c, err)
}

// describe is the error of the call with which the link failed.
func (l *link[R]) describe(ctx context.Context, c *call[R], err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	cause := l.err
	if timedOut(err) && ctx.Err() != nil {
		cause = ended(ctx)
	}
	return &Error{l.outcomeOf(c), l.peer.name, cause}
}

// written counts, and reports whether the writer is to go on.
func (l *link[R]) written(n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.accepted += uint64(n)
	l.writing = false
	return l.wakeWriterLocked()
}

// receive reads the replies of a call whose requests are the oldest. What else comes is
// of others who have joined.
func (l *link[R]) receive(c *call[R]) (err error) {
	defer rescue(&err)
	for {
		v, err := l.in.next()
		if _, bad := err.(*badReply); err != nil && !bad {
			return err
		}
		if l.p.cfg.isPush(v) && err == nil {
			l.push(v)
			continue
		}
		if l.ids != nil && !l.isOf(v, c) {
			if l.answer(v, err) {
				l.mu.Lock()
				l.releaseLocked(1)
				l.mu.Unlock()
			}
			continue
		}
		l.p.stats.replies.Add(1)
		if err != nil {
			return err
		}
		if c.replies = append(c.replies, v); len(c.replies) == c.want {
			return nil
		}
	}
}

func (l *link[R]) isOf(v R, c *call[R]) bool {
	id, _ := l.p.cfg.ID(v)
	return id == c.id
}

// goOn ends being alone: the reader takes over if others have joined, or the caller
// left its reply to be read.
func (l *link[R]) goOn(c *call[R], left bool) {
	l.mu.Lock()
	l.alone = false
	if left {
		c.state.Store(abandoned)
		if l.ids == nil {
			l.taken = append(l.taken, c)
		}
	} else {
		delete(l.ids, c.id)
		l.releaseLocked(1)
	}
	wake := l.count > 0 || l.in.r < l.in.w || l.err != nil
	if wake {
		l.parked = false
	}
	writer := l.wakeWriterLocked()
	l.mu.Unlock()
	if wake {
		signal(l.wakeReader)
	}
	if writer {
		signal(l.wakeWriter)
	}
}
