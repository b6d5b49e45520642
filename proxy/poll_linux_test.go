package proxy

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ticking is a poller that one timer wakes, and its owner.
type ticking struct {
	poller
	timer int
	over  bool
	done  chan struct{}
	rang  func() // the timer
}

func newTicking(t *testing.T) *ticking {
	k := &ticking{done: make(chan struct{})}
	began := time.Now()
	if err := k.open(func() time.Duration { return time.Since(began) }, func() time.Duration { return -1 }); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	k.timer = fd
	sysWatch(k.ep, unix.EPOLL_CTL_ADD, int32(fd), &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: 1})
	t.Cleanup(func() {
		k.post(func() { k.over = true })
		<-k.done
		k.shut()
		unix.Close(fd)
	})
	return k
}

func (k *ticking) run() {
	defer close(k.done)
	for !k.over {
		for _, ev := range k.events[:k.wait(false)] {
			if !k.own(&ev) {
				k.rang()
			}
		}
	}
}

func (k *ticking) ringIn(d time.Duration) {
	unix.TimerfdSettime(k.timer, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}, nil)
}

// The thread that runs a busy poller is the one that watched for the others too.
func TestPollerThatIsParkedDoesNotWaitForABusyOne(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(2, runtime.GOMAXPROCS(0)))) // one to be busy on, one to wake
	const cycles, own = 50, 8 * time.Millisecond                                // less than the runtime takes to look by itself
	busy, parked := newTicking(t), newTicking(t)
	var heard atomic.Int64
	served := 0
	over := make(chan struct{}, 2)
	parked.rang = func() {
		heard.Add(1)
		over <- struct{}{}
	}
	busy.rang = func() {
		before := heard.Load()
		for end := time.Now().Add(own); time.Now().Before(end) && heard.Load() == before; {
			busy.wait(true)
		}
		if heard.Load() > before {
			served++
		}
		over <- struct{}{}
	}
	go busy.run()
	go parked.run()
	for range cycles {
		busy.ringIn(2 * time.Millisecond)
		parked.ringIn(3 * time.Millisecond)
		<-over // without a timer of the runtime's: it would look for that
		<-over
	}
	if served < cycles/5 {
		t.Errorf("it was served %d times of %d while the other was busy", served, cycles)
	}
}
