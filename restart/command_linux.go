package restart

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// dieWithParent has the kernel ask the command to stop when the supervisor is gone,
// for it has no link to notice that by. The kernel means the thread that started it;
// Go ends no thread that was not locked. One that has gone before is not told of.
func dieWithParent(sig os.Signal, parent int) error {
	if n, ok := sig.(syscall.Signal); ok {
		unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(n), 0, 0, 0)
	}
	if os.Getppid() != parent {
		return errOrphaned
	}
	return nil
}

// waitGroup waits for a process, and ends what is left of its group before that number
// can be another's.
func waitGroup(p *os.Process) (*os.ProcessState, error) {
	for unix.Waitid(unix.P_PID, p.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	unix.Kill(-p.Pid, unix.SIGKILL)
	return p.Wait()
}

func dup2(from, to int) error { return unix.Dup3(from, to, 0) }

func notifyListener() (*net.UnixConn, string, error) {
	path := "@holdfast-" + rand.Text() // that nobody else has first
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, "", err
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	}
	if err != nil {
		conn.Close()
		return nil, "", err
	}
	return conn, path, nil
}

// trusted fails unless the sender is this user, root, or of the command's group, which
// may have changed its user: anybody may write to an abstract socket.
func trusted(oob []byte, leader int) error {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for i := range messages {
		cred, err := unix.ParseUnixCredentials(&messages[i])
		if err != nil {
			continue
		}
		pid := int(cred.Pid)
		if int(cred.Uid) == os.Getuid() || cred.Uid == 0 || pid == leader {
			return nil
		}
		if group, err := unix.Getpgid(pid); err == nil && group == leader {
			return nil
		}
		return fmt.Errorf("process %d of user %d is not of the command's", pid, cred.Uid)
	}
	return errors.New("who sent it is not known")
}

// groupHas reports whether a process of the group has the server's end of a
// connection: from our port, to the server's.
func groupHas(group, ours, theirs int) bool {
	inode := serverSide(ours, theirs)
	if inode == "" {
		return false
	}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		text, err := os.ReadFile(stat)
		if err != nil {
			continue
		}
		field := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		if len(field) < 3 || field[2] != strconv.Itoa(group) { // state ppid pgrp
			continue
		}
		links, _ := filepath.Glob(filepath.Dir(stat) + "/fd/*")
		for _, link := range links {
			if target, err := os.Readlink(link); err == nil && target == "socket:["+inode+"]" {
				return true
			}
		}
	}
	return false
}

// serverSide is the inode of the accepted socket; 0 is not accepted yet.
func serverSide(ours, theirs int) string {
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(table)
		if err != nil {
			continue
		}
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			field := strings.Fields(lines.Text())
			if len(field) > 9 && field[9] != "0" &&
				strings.HasSuffix(field[1], fmt.Sprintf(":%04X", theirs)) && strings.HasSuffix(field[2], fmt.Sprintf(":%04X", ours)) {
				return field[9]
			}
		}
	}
	return ""
}
