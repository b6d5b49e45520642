package proxy

import "time"

// wheel is the timers of one event loop: every slot is in at most one of its lists, by
// the moment it is due. What is due later than a turn waits in the last list, and is
// filed again when that comes up.
type wheel struct {
	table  *table
	lists  [wheelSize]int32 // index of the first slot, plus 1
	count  int
	turned int64 // ticks that are over
	next   int64 // the first tick that may have a list
}

const (
	wheelTick = 50 * time.Millisecond
	wheelSize = 1024
)

// file puts a slot where it is due, unless it is due sooner already.
func (w *wheel) file(s *slot, due time.Duration) {
	if s.due != 0 && s.due <= due {
		return
	}
	w.drop(s)
	s.due = due
	at := min(max(int64(due/wheelTick)+1, w.turned+1), w.turned+wheelSize-1)
	if w.count == 0 || at < w.next {
		w.next = at
	}
	list := &w.lists[at%wheelSize]
	s.list = int16(at % wheelSize)
	s.after = *list
	s.before = 0
	if s.after != 0 {
		w.table.at(s.after - 1).before = s.index + 1
	}
	*list = s.index + 1
	w.count++
}

// drop takes a slot out.
func (w *wheel) drop(s *slot) {
	if s.due == 0 {
		return
	}
	s.due = 0
	if s.after != 0 {
		w.table.at(s.after - 1).before = s.before
	}
	if s.before != 0 {
		w.table.at(s.before - 1).after = s.after
	} else {
		w.lists[s.list] = s.after
	}
	s.after, s.before = 0, 0
	w.count--
}

// turn calls fire for each slot that is due; fire may file it again.
func (w *wheel) turn(now time.Duration, fire func(*slot)) {
	end := int64(now / wheelTick)
	for w.turned < end {
		if w.count == 0 || w.next > end {
			w.turned = end
			return
		}
		w.turned = max(w.turned+1, w.next)
		w.next = w.turned + 1
		for list := &w.lists[w.turned%wheelSize]; *list != 0; {
			s := w.table.at(*list - 1)
			due := s.due
			w.drop(s)
			if due > now {
				w.file(s, due)
				continue
			}
			fire(s)
		}
		for w.count > 0 && w.lists[w.next%wheelSize] == 0 {
			w.next++
		}
	}
}

// due is when the next slot may be; negative is never.
func (w *wheel) due() time.Duration {
	if w.count == 0 {
		return -1
	}
	return time.Duration(w.next) * wheelTick
}

// table keeps the slots of one event loop where they are, and out of the garbage
// collector's way: in blocks that are never given back, used again and again.
type table struct {
	blocks []*[blockSize]slot
	free   int32 // index of the first free slot, plus 1
	used   int
}

const blockSize = 64

func (t *table) at(i int32) *slot { return &t.blocks[i/blockSize][i%blockSize] }

// take returns an empty slot.
func (t *table) take() *slot {
	if t.free == 0 {
		first := int32(len(t.blocks) * blockSize)
		t.blocks = append(t.blocks, new([blockSize]slot))
		for i := int32(blockSize - 1); i >= 0; i-- {
			s := t.at(first + i)
			s.index = first + i
			s.after = t.free
			t.free = s.index + 1
		}
	}
	s := t.at(t.free - 1)
	t.free = s.after
	t.used++
	*s = slot{index: s.index, gen: s.gen, fd: [2]int32{-1, -1}}
	return s
}

// give takes a slot back; who still knows it by its generation finds it gone.
func (t *table) give(s *slot) {
	*s = slot{index: s.index, gen: (s.gen + 1) & maxGen, after: t.free, fd: [2]int32{-1, -1}}
	t.free = s.index + 1
	t.used--
}

// all calls do for each slot in use.
func (t *table) all(do func(*slot)) {
	for _, b := range t.blocks {
		for i := range b {
			if b[i].stage != free {
				do(&b[i])
			}
		}
	}
}
