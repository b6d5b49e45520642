package simnet

import (
	"cmp"
	"net/netip"
	"slices"
	"syscall"
)

const (
	firstPort = 32768 // Linux's ip_local_port_range
	lastPort  = 60999
)

// A Host is one machine of a Net and the one program on it: what dials from
// its address and listens on it. [Net.Host] names it.
type Host struct {
	net    *Net
	name   string
	ip     netip.Addr // not valid for a Unix path
	frozen bool
	conns  map[*Conn]bool
	ports  map[uint16]bool // local ports of dialed sockets
	next   uint16
}

// Kill ends the host's program as a crash does: streams are reset, queued ones
// too, sockets and listeners closed; calls on them return [net.ErrClosed]. The
// host stays, refuses dials, and can listen and dial again.
func (h *Host) Kill() {
	h.net.lock()
	defer h.net.unlock()
	h.frozen = false
	h.stop((*Conn).reset)
	h.net.resume()
}

// Freeze stops the host's program like SIGSTOP, while its kernel works on:
// dials to it succeed until the backlog is full, bytes and datagrams arrive
// until the buffers are full. Calls made on the host's sockets do not return
// before Thaw, not even for a deadline; but closing returns at once, ends
// them, and sends its FIN or RST after Thaw. What was sent before still arrives.
func (h *Host) Freeze() {
	h.net.lock()
	defer h.net.unlock()
	h.frozen = true
}

// Thaw lets the program go on.
func (h *Host) Thaw() {
	h.net.lock()
	defer h.net.unlock()
	h.frozen = false
	for c := range h.conns {
		c.changed.Broadcast()
	}
	for _, l := range h.net.listeners {
		l.changed.Broadcast()
	}
	for _, p := range h.net.packets {
		p.changed.Broadcast()
	}
	h.net.resume()
}

// Conns returns the host's ends of all streams that it has dialed or that wait
// for or came by its Accept, and has not closed, oldest first.
func (h *Host) Conns() []*Conn {
	h.net.lock()
	defer h.net.unlock()
	return slices.DeleteFunc(h.sorted(), func(c *Conn) bool { return !c.established })
}

// sorted lists all streams by age: a map's order must not reach the wire.
func (h *Host) sorted() []*Conn {
	all := make([]*Conn, 0, len(h.conns))
	for c := range h.conns {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *Conn) int { return cmp.Compare(a.id, b.id) })
	return all
}

// stop closes all the host has open, streams by end.
func (h *Host) stop(end func(*Conn)) {
	for _, l := range h.net.listeners {
		if l.host == h {
			l.shut()
		}
	}
	for _, p := range h.net.packets {
		if p.host == h {
			p.shut()
		}
	}
	for _, c := range h.sorted() {
		end(c)
	}
}

// pick finds a free local port, as Linux does by walking on from the last one.
func (h *Host) pick(proto string, ip netip.Addr) (place, error) {
	for range lastPort - firstPort + 1 {
		port := h.next
		if h.next++; h.next > lastPort {
			h.next = firstPort
		}
		at := place{proto: proto, ap: netip.AddrPortFrom(ip, port)}
		if !h.ports[port] && !h.net.taken(at) {
			return at, nil
		}
	}
	return place{}, syscall.EADDRNOTAVAIL
}

// local takes a place to dial from.
func (h *Host) local(proto string) (place, error) {
	if proto != "unix" && !h.ip.IsValid() {
		return place{}, syscall.EADDRNOTAVAIL
	}
	at, err := h.pick(proto, h.ip)
	if err != nil {
		return at, err
	}
	h.ports[at.ap.Port()] = true
	if proto == "unix" {
		at = place{proto: proto, ap: netip.AddrPortFrom(netip.Addr{}, at.ap.Port()), path: "@"}
	}
	return at, nil
}

// forget gives back what a closed stream held.
func (h *Host) forget(c *Conn) {
	delete(h.conns, c)
	if c.dialed {
		delete(h.ports, c.local.ap.Port())
	}
}
