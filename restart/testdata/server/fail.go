package main

import (
	"os"
	"sync"
	"syscall"
	"time"
	_ "unsafe"

	"golang.org/x/sys/unix"
)

// protocol is that of package restart, which the tests replace: an older build is
// another number here.
//
//go:linkname protocol github.com/holdfast-net/holdfast/restart.protocol
var protocol struct {
	Version, Oldest int
	Features        []string
}

func speak(version int) {
	switch version {
	case 0:
	case 1:
		protocol.Version, protocol.Oldest, protocol.Features = 1, 1, nil
	default:
		protocol.Version, protocol.Oldest = version, version
	}
}

// spare is a second handle on the link, for those who misuse it.
var spare = -1

// misbehave is what happens before Run.
func misbehave(fail string) {
	spare, _ = unix.FcntlInt(3, unix.F_DUPFD_CLOEXEC, 50)
	switch fail {
	case "exit 3":
		os.Exit(3)
	case "hang":
		time.Sleep(time.Hour)
	case "garbage":
		unix.Write(spare, []byte("GET / HTTP/1.1\r\nHost: example\r\n\r\n"))
		time.Sleep(time.Hour)
	case "half a message":
		unix.Write(spare, []byte{0, 0, 0, 9, 1, 0})
		time.Sleep(time.Hour)
	case "oversize message":
		unix.Write(spare, []byte{0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0})
		time.Sleep(time.Hour)
	case "bad hello":
		unix.Write(spare, []byte{0, 0, 0, 3, 1, 0, 0, 0, '{', '{', '{'})
		time.Sleep(time.Hour)
	case "link closed before hello":
		unix.Shutdown(spare, unix.SHUT_RDWR)
		time.Sleep(time.Hour)
	case "unknown message":
		raw(99, 0)
	case "unknown optional message":
		raw(99, 1)
	case "files":
		files := []int{0, 1, 2}
		head := []byte{0, 0, 0, 4, 3, 0, 0, byte(len(files))} // paused, with files
		unix.Sendmsg(spare, append(head, "null"...), unix.UnixRights(files...), nil, 0)
	}
}

func raw(kind, flags byte) {
	unix.Write(spare, append([]byte{0, 0, 0, 4, kind, flags, 0, 0}, "null"...))
}

var once sync.Once

// soon is what happens after it is ready: as its accept loops begin.
func soon(fail string) {
	const moment = 30 * time.Millisecond
	once.Do(func() {
		switch fail {
		case "panic after ready":
			time.AfterFunc(moment, func() { panic("a bug that shows under load") })
		case "killed after ready":
			time.AfterFunc(moment, func() { syscall.Kill(os.Getpid(), syscall.SIGKILL) })
		case "exit after ready":
			time.AfterFunc(moment, func() { os.Exit(4) })
		case "link closed after ready":
			time.AfterFunc(moment, func() { unix.Shutdown(spare, unix.SHUT_RDWR) })
		case "garbage after ready":
			time.AfterFunc(moment, func() { unix.Write(spare, []byte("GET / HTTP/1.1\r\n\r\n")) })
		case "garbage later":
			time.AfterFunc(500*time.Millisecond, func() { unix.Write(spare, []byte("GET / HTTP/1.1\r\n\r\n")) })
		case "eat files":
			time.AfterFunc(moment, eatFiles)
		case "ready twice":
			time.AfterFunc(moment, func() { raw(2, 0); raw(2, 0) })
		case "crash soon":
			time.AfterFunc(4*moment, func() { os.Exit(5) })
		}
	})
}

// eatFiles leaves no descriptor for anything else.
func eatFiles() {
	for {
		if _, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return
		}
	}
}
