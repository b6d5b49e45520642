package mmsg

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// control is what goes beside a datagram.
type control struct {
	local   netip.Addr
	segment int
}

// ctlSize has room for an in6_pktinfo and a segment size, with their headers.
const ctlSize = 96

// parseControl takes what it knows, and nothing of what is malformed.
func parseControl(b []byte) (c control) {
	for len(b) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(b)
		if err != nil {
			return c
		}
		switch {
		case h.Level == unix.SOL_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			c.local = netip.AddrFrom4([4]byte(data[4:8])) // ipi_spec_dst: never a group or a broadcast
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			c.local = netip.AddrFrom16([16]byte(data[:16])).Unmap()
		case h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			c.segment = int(binary.NativeEndian.Uint32(data)) // an int of the kernel's
		case h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(data) >= 2:
			c.segment = int(binary.NativeEndian.Uint16(data)) // or a u16, in old ones
		}
		b = rest
	}
	return c
}

// put writes it, and returns how long it is.
func (c control) put(b *[ctlSize]byte, six bool) (n int) {
	switch {
	case !c.local.IsValid() || c.local.IsMulticast():
	case six: // for a mapped v4 address too
		data := putHeader(b[n:], unix.SOL_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
		addr := c.local.As16()
		copy(data, addr[:])
		n += unix.CmsgSpace(unix.SizeofInet6Pktinfo)
	case c.local.Is4():
		data := putHeader(b[n:], unix.SOL_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
		addr := c.local.As4()
		copy(data[4:], addr[:])
		n += unix.CmsgSpace(unix.SizeofInet4Pktinfo)
	}
	if c.segment > 0 {
		binary.NativeEndian.PutUint16(putHeader(b[n:], unix.SOL_UDP, unix.UDP_SEGMENT, 2), uint16(c.segment))
		n += unix.CmsgSpace(2)
	}
	return n
}

// setName writes an address, and returns how long it is.
func setName(name *unix.RawSockaddrInet6, to netip.AddrPort, six bool) uint32 {
	addr := to.Addr()
	if !six {
		in := inet4(name)
		*in = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: swap(to.Port())}
		if addr = addr.Unmap(); addr.Is4() {
			in.Addr = addr.As4()
		} else {
			in.Family = unix.AF_INET6 // which such a socket refuses
		}
		return unix.SizeofSockaddrInet4
	}
	*name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: swap(to.Port()), Addr: addr.As16()}
	if zone := addr.Zone(); zone != "" {
		name.Scope_id = scopeOf(zone)
	}
	return unix.SizeofSockaddrInet6
}

func addrPortOf(name *unix.RawSockaddrInet6) netip.AddrPort {
	if name.Family == unix.AF_INET {
		in := inet4(name)
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), swap(in.Port))
	}
	addr := netip.AddrFrom16(name.Addr).Unmap()
	if name.Scope_id != 0 && addr.Is6() {
		addr = addr.WithZone(strconv.Itoa(int(name.Scope_id))) // package net understands numbers too
	}
	return netip.AddrPortFrom(addr, swap(name.Port))
}

// scopeOf is the number of an interface.
func scopeOf(zone string) uint32 {
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n)
	}
	ifi, err := net.InterfaceByName(zone)
	if err != nil {
		return 0
	}
	return uint32(ifi.Index)
}

// swap is htons and ntohs.
func swap(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}
