package listen

import (
	"bufio"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// peerPID is the process that listens at the other end of a Unix connection.
func peerPID(conn net.Conn) (pid int) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0
	}
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}

// ownerOf finds the process that has the port: its socket's inode is in
// /proc/net/tcp, and a link to that among the files of the process. Others' files
// are for root to see.
func ownerOf(network, address string) int {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return 0
	}
	n, err := net.LookupPort(network, port)
	if err != nil {
		return 0
	}
	sockets := map[string]bool{}
	for _, table := range []string{"", "6"} {
		inodesOf("/proc/net/"+network[:3]+table, n, sockets)
	}
	if len(sockets) == 0 {
		return 0
	}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && sockets[target] {
			pid, _ := strconv.Atoi(strings.Split(link, "/")[2])
			return pid
		}
	}
	return 0
}

// inodesOf collects the sockets that are bound to a port and connected to nobody,
// from lines such as
//
//	0: 0100007F:1B58 00000000:0000 0A … uid timeout inode …
func inodesOf(table string, port int, into map[string]bool) {
	f, err := os.Open(table)
	if err != nil {
		return
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		field := strings.Fields(lines.Text())
		if len(field) < 10 || !strings.HasSuffix(field[2], ":0000") {
			continue
		}
		_, hex, _ := strings.Cut(field[1], ":")
		if n, err := strconv.ParseInt(hex, 16, 32); err == nil && int(n) == port {
			into["socket:["+field[9]+"]"] = true
		}
	}
}
