package simnet

import (
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
)

// A place is where a socket lives: an IP address and port, or a Unix path.
// An unnamed Unix client has the path "@" and, to tell it from others, a port.
type place struct {
	proto string // "tcp", "udp", "unix"; "" is no place
	ap    netip.AddrPort
	path  string
}

// host names the host that a listener at this place belongs to.
func (p place) host() string {
	if p.proto == "unix" {
		return p.path
	}
	return p.ap.Addr().String()
}

func (p place) String() string {
	if p.proto == "unix" {
		return p.path + "#" + strconv.Itoa(int(p.ap.Port()))
	}
	return p.ap.String()
}

// addr is the place as package net has it; a nil interface for no place.
func (p place) addr() net.Addr {
	switch p.proto {
	case "tcp":
		return net.TCPAddrFromAddrPort(p.ap)
	case "udp":
		return net.UDPAddrFromAddrPort(p.ap)
	case "unix":
		return &net.UnixAddr{Net: "unix", Name: p.path}
	}
	return nil
}

// parse reads an address as package net would, but resolves nothing.
func parse(network, addr string) (place, error) {
	var family int
	switch network {
	case "unix":
		return place{proto: network, path: addr}, nil
	case "tcp4", "udp4":
		family = 4
	case "tcp6", "udp6":
		family = 6
	case "tcp", "udp":
	default:
		return place{}, net.UnknownNetworkError(network)
	}
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return place{}, err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return place{}, &net.AddrError{Err: "invalid port", Addr: addr}
	}
	ip := netip.IPv4Unspecified()
	if host != "" {
		if ip, err = netip.ParseAddr(host); err != nil {
			return place{}, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		}
		ip = ip.Unmap()
	}
	if family == 4 && !ip.Is4() || family == 6 && !ip.Is6() {
		return place{}, &net.AddrError{Err: "no suitable address found", Addr: host}
	}
	return place{proto: network[:3], ap: netip.AddrPortFrom(ip, uint16(port))}, nil
}

// syscallError dresses an errno as the system call that would have failed.
func syscallError(call string, err error) error {
	if _, ok := err.(syscall.Errno); ok {
		return os.NewSyscallError(call, err)
	}
	return err
}

func listenError(network string, at place, err error) error {
	return &net.OpError{Op: "listen", Net: network, Addr: at.addr(), Err: syscallError("bind", err)}
}

func dialError(network string, to place, err error) error {
	return &net.OpError{Op: "dial", Net: network, Addr: to.addr(), Err: syscallError("connect", err)}
}

// ioError is the error of a call on an open socket. Success and the end of the
// stream pass as they are.
func ioError(op string, local, remote place, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: local.proto, Source: local.addr(), Addr: remote.addr(), Err: syscallError(op, err)}
}
