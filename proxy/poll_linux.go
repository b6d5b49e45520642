package proxy

import (
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// poller waits for the events of many sockets, for what is posted and for the next moment
// at which something is due, parked like any goroutine: the runtime's own poller watches
// this one.
type poller struct {
	mailbox
	ep     int
	events [256]unix.EpollEvent
	next   func() time.Duration // when something is due; negative is never
	time   func() time.Duration

	bell  int           // an eventfd: something was posted
	clock int           // a timerfd
	alarm time.Duration // when it rings
	file  *os.File      // of ep
	park  syscall.RawConn
	look  func(fd uintptr) bool
	found int // by look

	parked atomic.Bool
	rounds int // since it was
	others []unix.PollFd
}

// pollers are all there are in this process: its processors are theirs in common.
var pollers struct {
	mu  sync.Mutex
	all atomic.Pointer[[]*poller]
}

// enlist makes q one of the pollers, or one no more.
func (q *poller) enlist(join bool) {
	pollers.mu.Lock()
	defer pollers.mu.Unlock()
	var all []*poller
	if old := pollers.all.Load(); old != nil {
		all = slices.DeleteFunc(slices.Clone(*old), func(o *poller) bool { return o == q })
	}
	if join {
		all = append(all, q)
	}
	pollers.all.Store(&all)
}

// The events that are no socket's carry these in place of an index.
const (
	bellEvent  = -1
	clockEvent = -2
)

func (q *poller) open(now, next func() time.Duration) error {
	q.ep, q.bell, q.clock = -1, -1, -1
	q.time, q.next, q.look = now, next, q.tryPoll
	q.ring = func() { sysRing(q.bell) }
	err := q.openAll()
	if err != nil {
		q.shut()
	}
	return err
}

func (q *poller) openAll() (err error) {
	if q.ep, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return os.NewSyscallError("epoll_create", err)
	}
	if q.bell, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	if q.clock, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC); err != nil {
		return os.NewSyscallError("timerfd_create", err)
	}
	sysWatch(q.ep, unix.EPOLL_CTL_ADD, int32(q.bell), &unix.EpollEvent{Events: unix.EPOLLIN, Fd: bellEvent})
	sysWatch(q.ep, unix.EPOLL_CTL_ADD, int32(q.clock), &unix.EpollEvent{Events: unix.EPOLLIN, Fd: clockEvent})
	unix.SetNonblock(q.ep, true) // or it would not be watched
	q.file = os.NewFile(uintptr(q.ep), "epoll")
	q.park, err = q.file.SyscallConn()
	q.enlist(true)
	return err
}

// shut closes what open opened.
func (q *poller) shut() {
	q.enlist(false)
	if q.file != nil {
		q.file.Close()
	} else if q.ep >= 0 {
		unix.Close(q.ep)
	}
	for _, fd := range [...]int{q.bell, q.clock} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// wait returns how many events there are. When there is nothing it parks, unless the
// caller is busy.
func (q *poller) wait(busy bool) int {
	if q.rounds++; q.rounds%rouseEvery == 0 {
		q.rouse()
	}
	if busy {
		n, _ := sysPoll(q.ep, q.events[:])
		return max(n, 0)
	}
	q.found = 0
	q.park.Read(q.look)
	q.parked.Store(false)
	return q.found
}

// rouseEvery is how many times in a row a poller has something to do before it looks
// after the others.
const rouseEvery = 4

// rouse wakes others that are parked and have something to do. The thread that runs q is
// the one that watched for all of them, and while q is busy the runtime looks for itself
// every 10 ms only. A goroutine, even an empty one, wakes an idle processor, which looks
// before it sleeps.
func (q *poller) rouse() {
	q.others = q.others[:0]
	for _, o := range *pollers.all.Load() {
		if o.parked.Load() {
			q.others = append(q.others, unix.PollFd{Fd: int32(o.ep), Events: unix.POLLIN})
		}
	}
	if len(q.others) > 0 && sysReady(q.others) {
		go func() {}()
	}
}

// tryPoll asks without waiting; false is that there is nothing to do before an event.
func (q *poller) tryPoll(uintptr) bool {
	n, e := sysPoll(q.ep, q.events[:])
	q.found = max(n, 0)
	if n == 0 && e == 0 {
		q.arm()
		q.rounds = 0
		q.parked.Store(true)
		return false
	}
	return true
}

// arm sets the alarm to the next moment at which something is due.
func (q *poller) arm() {
	due := q.next()
	now := q.time()
	if due < 0 || q.alarm > now && q.alarm <= due {
		return // an alarm that is too early does no harm
	}
	q.alarm = due
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(int64(due-now), 1))}
	unix.TimerfdSettime(q.clock, 0, &spec, nil)
}

// own sees to an event that is the poller's own.
func (q *poller) own(ev *unix.EpollEvent) bool {
	var b [8]byte
	switch ev.Fd {
	case bellEvent:
		sysRead(int32(q.bell), b[:])
		q.answer()
	case clockEvent:
		sysRead(int32(q.clock), b[:])
		q.alarm = 0
	default:
		return false
	}
	return true
}
