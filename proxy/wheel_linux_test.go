package proxy

import (
	"math/rand/v2"
	"testing"
	"time"
)

// Whatever is filed, moved and dropped: each slot fires once, not before it is due, and
// at most two ticks after.
func TestWheelFiresEachSlotOnce(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		var table table
		w := wheel{table: &table}
		due := map[int32]time.Duration{}
		now := time.Duration(1)
		for range 3000 {
			switch r.IntN(4) {
			case 0, 1:
				s := table.take()
				s.stage = relaying
				at := now + time.Duration(r.Int64N(int64(3*time.Minute)))
				w.file(s, at)
				due[s.index] = at
				if r.IntN(3) == 0 { // sooner counts, later does not
					sooner := now + time.Duration(r.Int64N(int64(3*time.Minute)))
					w.file(s, sooner)
					due[s.index] = min(at, sooner)
				}
			case 2:
				for i := range due {
					w.drop(table.at(i))
					table.give(table.at(i))
					delete(due, i)
					break
				}
			case 3:
				step := time.Duration(r.Int64N(int64(2 * time.Second)))
				if d := w.due(); d >= 0 && len(due) == 0 {
					t.Fatalf("seed %d: nothing is filed, and due in %v", seed, d)
				}
				now += step
				w.turn(now, func(s *slot) {
					if at, ok := due[s.index]; !ok || at > now {
						t.Fatalf("seed %d: slot %d at %v, due at %v", seed, s.index, now, at)
					}
					delete(due, s.index)
					table.give(s)
				})
				for i, at := range due {
					if at+2*wheelTick < now {
						t.Fatalf("seed %d: slot %d was due at %v, and it is %v", seed, i, at, now)
					}
				}
			}
		}
		if table.used != len(due) || w.count != len(due) {
			t.Fatalf("seed %d: %d used, %d filed, want %d", seed, table.used, w.count, len(due))
		}
	}
}

func TestAGivenSlotIsNotFound(t *testing.T) {
	l := &loop{}
	s := l.table.take()
	s.stage = relaying
	r := s.ref()
	if l.find(r) != s {
		t.Fatal("a slot in use is not found")
	}
	l.table.give(s)
	again := l.table.take()
	again.stage = relaying
	if again != s || l.find(r) != nil {
		t.Errorf("the old name of a slot finds its next user")
	}
}

// A slot is used more often than an event can count.
func TestGenerationsBeginAgain(t *testing.T) {
	var table table
	s := table.take()
	s.gen = maxGen
	s.stage = relaying
	table.give(s)
	if s := table.take(); s.gen != 0 {
		t.Errorf("after the last generation comes %d", s.gen)
	}
	for _, gen := range []int32{0, 1, maxGen} {
		if pad := gen<<1 | int32(backend); pad>>1 != gen || side(pad&1) != backend {
			t.Errorf("an event cannot carry generation %d", gen)
		}
	}
}
