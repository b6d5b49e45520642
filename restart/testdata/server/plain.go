package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// plain is a program that knows nothing of package restart: it takes sockets as
// systemd passes them, and ends at SIGTERM.
func plain(ready string) {
	switch now.Fail {
	case "exit 3":
		os.Exit(3)
	case "hang":
		time.Sleep(time.Hour)
	}
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		panic("LISTEN_PID is " + os.Getenv("LISTEN_PID"))
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	must(err)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	var loops, conns sync.WaitGroup
	var lns []net.Listener
	for i := range n {
		f := os.NewFile(uintptr(3+i), "socket")
		ln, err := net.FileListener(f)
		must(err)
		f.Close()
		lns = append(lns, ln)
		if now.Fail == "never accept" {
			continue
		}
		loops.Go(func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				conns.Go(func() { plainConn(conn) })
			}
		})
	}
	if ready == "notify" && now.Fail != "never accept" {
		conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
		must(err)
		fmt.Fprint(conn, "STATUS=about to\nREADY=1\n")
		conn.Close()
	}
	if now.Fail == "exit after ready" {
		time.AfterFunc(60*time.Millisecond, func() { os.Exit(4) })
	}
	<-stop
	for _, ln := range lns {
		ln.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Unix(1, 0))
	}
	loops.Wait()
	conns.Wait()
}

func plainConn(conn net.Conn) {
	defer conn.Close()
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "GET ") {
			io.WriteString(conn, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
			return
		}
		io.WriteString(conn, (&server{}).answer(lines.Text()))
	}
}
