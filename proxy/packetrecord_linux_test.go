package proxy

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/internal/record"
)

// asRecord is the record of sessions as pack writes it.
func asRecord(addr string, all ...savedSession) []byte {
	fields := [][]byte{[]byte(addr)}
	for _, r := range all {
		s := &session{
			key: r.key, assured: r.assured, began: -r.began, active: -r.active, owed: r.owed, datagrams: r.datagrams, bytes: r.size,
		}
		fields = append(fields, s.save(0))
	}
	return record.Append([]byte{sessionsVersion, byte(len(all))}, fields...)
}

func someSession() savedSession {
	peer := netip.MustParseAddrPort("192.0.2.1:1234")
	return savedSession{
		key:     sessionKey{peer, netip.MustParseAddr("192.0.2.2"), netip.MustParseAddrPort("[2001:db8::1]:53")},
		assured: true, began: time.Minute, active: time.Second, owed: 2,
		datagrams: [2]uint64{3, 1}, size: [2]uint64{300, 100},
	}
}

// What is written is read.
func TestRecordOfSessions(t *testing.T) {
	one, two := someSession(), someSession()
	two.key.local, two.assured = netip.Addr{}, false
	addr, all, err := readSessions(asRecord("[::]:53", one, two))
	if err != nil || addr != "[::]:53" || len(all) != 2 || all[0] != one || all[1] != two {
		t.Errorf("%q %+v %v", addr, all, err)
	}
}

// No record does harm: it is refused, or what was read of it can be written and read.
func FuzzSessions(f *testing.F) {
	good := asRecord("127.0.0.1:53", someSession(), someSession())
	nobody := someSession()
	nobody.key.peer = netip.AddrPort{}
	for _, b := range [][]byte{
		nil, {0}, {sessionsVersion}, {sessionsVersion, 0}, {sessionsVersion, sessionsAtOnce + 1},
		good, good[:len(good)-1], append(bytes.Clone(good), "newer"...), append([]byte{sessionsVersion + 1}, good[1:]...),
		asRecord(""), asRecord("127.0.0.1:53", nobody),
		append([]byte{sessionsVersion}, bytes.Repeat([]byte{0xff}, 30)...),
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		addr, all, err := readSessions(b)
		if err != nil {
			return
		}
		for _, s := range all {
			if !s.key.peer.IsValid() || !s.key.client.IsValid() || s.began < 0 || s.active < 0 || s.owed < 0 {
				t.Fatalf("%+v", s)
			}
		}
		again, same, err := readSessions(asRecord(addr, all...))
		if err != nil || again != addr || len(same) != len(all) {
			t.Fatalf("%q: %d sessions became %d: %v", addr, len(all), len(same), err)
		}
		for i := range all {
			if all[i].node = ""; same[i] != all[i] { // which is the Cluster's to know
				t.Fatalf("%+v became %+v", all[i], same[i])
			}
		}
	})
}
