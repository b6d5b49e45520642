//go:build unix

package restart

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// systemd is the manager above, or anybody who speaks its two protocols: sockets
// passed in (sd_listen_fds(3)) and news passed out (sd_notify(3)). Works with
// version 252; Type=notify or notify-reload, for the pid never changes.
type systemd struct {
	path  string // of its notify socket, "" when there is none
	every time.Duration
}

const listenStart = 3 // the first descriptor that is passed in

func newSystemd() *systemd {
	s := &systemd{path: os.Getenv("NOTIFY_SOCKET")}
	if pid := os.Getenv("WATCHDOG_PID"); pid == "" || pid == strconv.Itoa(os.Getpid()) {
		if us, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64); err == nil && us > 0 {
			s.every = time.Duration(us) * time.Microsecond / 2 // as its documentation asks
		}
	}
	return s
}

// notify sends news. Whether anybody reads them is not our concern.
func (s *systemd) notify(text string) {
	if s.path == "" {
		return
	}
	conn, err := net.Dial("unixgram", s.path)
	if err != nil {
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second))
	conn.Write([]byte(text))
}

// reloading tells when the restart began; without it `systemctl reload` waits for
// its limit.
func (s *systemd) reloading() {
	var now unix.Timespec
	if s.path == "" || monotonic(&now) != nil {
		return
	}
	s.notify(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000))
}

// stopping tells that the service ends, and how long that may take: more than the
// manager would wait by itself.
func (s *systemd) stopping(most time.Duration) {
	s.notify(fmt.Sprintf("STOPPING=1\nEXTEND_TIMEOUT_USEC=%d", most.Microseconds()))
}

func (s *systemd) watchdog() (<-chan time.Time, func()) {
	if s.every == 0 {
		return nil, func() {}
	}
	t := time.NewTicker(s.every)
	return t.C, t.Stop
}

// sockets are what was passed in. A name comes from LISTEN_FDNAMES; one that is
// missing, or stands for nothing, is the socket's address.
func (s *systemd) sockets() (all []*socket) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil
	}
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for i := range max(n, 0) {
		fd := listenStart + i
		unix.CloseOnExec(fd)
		k, address, err := describe(fd)
		if err != nil {
			continue // a file, or something else that nobody asked for
		}
		name := address
		if i < len(names) && names[i] != "" && names[i] != "unknown" && names[i] != "stored" {
			name = names[i]
		}
		all = append(all, &socket{want: want{k, name, address}, fd: fd, given: true})
	}
	return all
}

// describe tells what a socket is, with its address in our grammar.
func describe(fd int) (kind, string, error) {
	kinds := map[int]kind{unix.SOCK_STREAM: kindStream, unix.SOCK_DGRAM: kindPacket}
	typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return "", "", err
	}
	k, ok := kinds[typ]
	if !ok {
		return "", "", errors.ErrUnsupported
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return "", "", err
	}
	network := map[kind]string{kindStream: "tcp://", kindPacket: "udp://"}[k]
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return k, network + (&net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}).String(), nil
	case *unix.SockaddrInet6:
		if net.IP(sa.Addr[:]).IsUnspecified() {
			return k, network + ":" + strconv.Itoa(sa.Port), nil
		}
		return k, network + (&net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}).String(), nil
	case *unix.SockaddrUnix:
		if k == kindPacket {
			return k, "unix:" + sa.Name + "?type=dgram", nil
		}
		return k, "unix:" + sa.Name, nil
	}
	return "", "", syscall.EAFNOSUPPORT
}
