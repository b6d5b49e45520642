// Package listen binds sockets: what net.Listen leaves open about files, owners
// and errors.
//
//	ln, file, err := listen.Stream(ctx, "unix", "/run/app.sock", listen.Options{Mode: 0o660})
//	…
//	ln.Close()
//	file.Remove() // if it is still ours
//
// A Unix socket's file has its mode from the first moment on. One that is there
// already is removed if nobody answers behind it, and kept, with an error, if
// somebody does. Closing the listener leaves the file, for the sockets may live on
// in another process; Remove takes it away, unless another has taken its place.
//
// An address in use is an error that names the process that uses it, where that
// can be known.
package listen

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// Options of a socket. The zero value is what package net does.
type Options struct {
	Mode    os.FileMode                                 // of a Unix socket's file; 0 leaves it to the umask
	Control func(string, string, syscall.RawConn) error // before it binds
}

// Stream listens on "tcp", "tcp4", "tcp6" or "unix".
func Stream(ctx context.Context, network, address string, o Options) (net.Listener, File, error) {
	return bind(ctx, network, address, o, func(c net.ListenConfig) (net.Listener, error) {
		c.KeepAlive = -1 // whoever accepts sets it
		ln, err := c.Listen(ctx, network, address)
		if u, ok := ln.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false)
		}
		return ln, err
	})
}

// Packet listens on "udp", "udp4", "udp6" or "unixgram".
func Packet(ctx context.Context, network, address string, o Options) (net.PacketConn, File, error) {
	return bind(ctx, network, address, o, func(c net.ListenConfig) (net.PacketConn, error) {
		return c.ListenPacket(ctx, network, address)
	})
}

func bind[S io.Closer](ctx context.Context, network, address string, o Options, do func(net.ListenConfig) (S, error)) (s S, file File, err error) {
	config := net.ListenConfig{Control: o.Control}
	if !strings.HasPrefix(network, "unix") || strings.HasPrefix(address, "@") || address == "" {
		s, err = do(config)
		return s, File{}, explain(network, address, err)
	}
	if len(address) > maxPath {
		return s, File{}, fmt.Errorf("listen %s: the path %q has %d bytes, and a socket's may have %d", network, address, len(address), maxPath)
	}
	config.Control = func(n, a string, c syscall.RawConn) error {
		if o.Mode != 0 {
			restrict(c, o.Mode) // the file is born so; what the umask takes away too is added below
		}
		if o.Control != nil {
			return o.Control(n, a, c)
		}
		return nil
	}
	unlock, err := lockFolder(ctx, address)
	if err != nil {
		return s, File{}, fmt.Errorf("listen %s %s: %w", network, address, err)
	}
	defer unlock()
	s, err = do(config)
	if errors.Is(err, syscall.EADDRINUSE) {
		if err = removeStale(network, address); err == nil {
			s, err = do(config)
		}
	}
	if err != nil {
		return s, File{}, explain(network, address, err)
	}
	file = fileAt(address)
	if o.Mode == 0 {
		return s, file, nil
	}
	if err = os.Chmod(file.path, o.Mode); err != nil {
		s.Close()
		file.Remove()
		var none S
		return none, File{}, fmt.Errorf("listen %s %s: %w", network, address, err)
	}
	return s, file, nil
}

// removeStale removes the file of a socket that nobody listens on any more.
func removeStale(network, path string) error {
	file := fileAt(path)
	if file.info == nil {
		return fmt.Errorf("listen %s %s: %w: what is there is not a socket", network, path, syscall.EADDRINUSE)
	}
	conn, err := net.DialTimeout(network, path, time.Second)
	if err == nil {
		defer conn.Close()
		return fmt.Errorf("listen %s %s: %w%s", network, path, syscall.EADDRINUSE, by(peerPID(conn)))
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("listen %s %s: %w, and whether by somebody alive is unknown: %w", network, path, syscall.EADDRINUSE, err)
	}
	file.Remove()
	return nil
}

// explain adds to an address in use who uses it.
func explain(network, address string, err error) error {
	if !errors.Is(err, syscall.EADDRINUSE) || strings.HasPrefix(network, "unix") {
		return err
	}
	return fmt.Errorf("%w%s", err, by(ownerOf(network, address)))
}

func by(pid int) string {
	if pid <= 0 {
		return ""
	}
	return fmt.Sprintf(" (by process %d)", pid)
}

// File is the file of a Unix socket; the zero value is none.
type File struct {
	path string
	info os.FileInfo
}

// fileAt is none if something else is there, such as a link to another's file.
func fileAt(path string) File {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&os.ModeSocket == 0 {
		return File{}
	}
	return File{path, info}
}

// Remove removes the file if it is still the one that was made. The number of an inode
// alone does not tell: the next file often gets that of the one before.
func (f File) Remove() {
	if f.info == nil {
		return
	}
	if now, err := os.Lstat(f.path); err == nil && os.SameFile(f.info, now) && now.ModTime().Equal(f.info.ModTime()) {
		os.Remove(f.path)
	}
}
