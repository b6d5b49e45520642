package mmsg

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// What is written can be read, and addresses come back as they were.
func TestControlAndNames(t *testing.T) {
	for _, text := range []string{"192.0.2.7:53", "[2001:db8::9]:7000", "[fe80::1%3]:65535"} {
		ap := netip.MustParseAddrPort(text)
		for _, six := range []bool{false, true} {
			if !six && ap.Addr().Is6() {
				continue
			}
			var name unix.RawSockaddrInet6
			setName(&name, ap, six)
			if got := addrPortOf(&name); got != ap {
				t.Errorf("%s became %s", ap, got)
			}
			var b [ctlSize]byte
			n := control{ap.Addr().WithZone(""), 1200}.put(&b, six)
			got := parseControl(b[:n])
			if got.local != ap.Addr().WithZone("") {
				t.Errorf("from %s became from %s", ap.Addr(), got.local)
			}
			if h := b[n-unix.CmsgSpace(2):]; h[unix.CmsgLen(0)] != 1200&0xff || h[unix.CmsgLen(0)+1] != 1200>>8 {
				t.Errorf("the size of a segment: % x", h)
			}
		}
	}
	for _, size := range []int{2, 4} { // a run that came, as the kernel tells
		var b [ctlSize]byte
		data := putHeader(b[:], unix.SOL_UDP, unix.UDP_GRO, size)
		if size == 2 {
			binary.NativeEndian.PutUint16(data, 1200)
		} else {
			binary.NativeEndian.PutUint32(data, 1200)
		}
		if got := parseControl(b[:unix.CmsgSpace(size)]).segment; got != 1200 {
			t.Errorf("segments of 1200 bytes, told in %d, became %d", size, got)
		}
	}
	var b [ctlSize]byte
	if n := (control{local: netip.MustParseAddr("224.0.0.1")}).put(&b, false); n != 0 {
		t.Error("a group is no source")
	}
}

// The way to a destination that refuses a run is remembered, among a bounded number.
func TestRunsThatAreRefused(t *testing.T) {
	b := &batch{gso: true, stubborn: map[netip.Addr]struct{}{}}
	peer := netip.MustParseAddrPort("192.0.2.1:1")
	ms := []Message{{Buf: make([]byte, 9), Peer: peer}, {Buf: make([]byte, 9), Peer: peer}, {Buf: make([]byte, 5), Peer: peer}, {Buf: make([]byte, 5), Peer: peer}}
	if n := b.run(ms); n != 3 {
		t.Errorf("a run of %d", n)
	}
	if b.relent(&ms[0], 3, unix.EPERM) || !b.relent(&ms[0], 3, unix.EIO) || b.run(ms) != 1 {
		t.Error("EIO is about runs, EPERM is not")
	}
	ms[0].Local = netip.MustParseAddr("192.0.2.255")
	if !b.relent(&ms[0], 1, unix.EINVAL) || ms[0].Local.IsValid() || b.relent(&ms[0], 1, unix.EINVAL) {
		t.Error("EINVAL without a run is about the source, once")
	}
	for i := range 3 * maxStubborn {
		b.relent(&Message{Peer: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1)}, 2, unix.EIO)
	}
	if len(b.stubborn) > maxStubborn {
		t.Errorf("%d destinations are remembered", len(b.stubborn))
	}
}

func FuzzControl(f *testing.F) {
	var b [ctlSize]byte
	n := control{netip.MustParseAddr("2001:db8::1"), 1200}.put(&b, true)
	f.Add(b[:n])
	n = control{netip.MustParseAddr("192.0.2.1"), 9}.put(&b, false)
	f.Add(b[:n])
	f.Fuzz(func(t *testing.T, b []byte) {
		if c := parseControl(b); c.segment < 0 || c.segment > 1<<16 {
			t.Errorf("a segment of %d", c.segment)
		}
	})
}
