package addr

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// Own are this host's addresses, by which a socket that is bound to none in particular
// knows its own datagrams. The zero value is ready to use, by several goroutines.
type Own struct {
	mu    sync.Mutex
	at    time.Time
	addrs map[netip.Addr]struct{}
}

// Has reports whether an address is this host's. It looks them up again after a while, so
// it is to be asked of few: of sources that have our own port, say.
func (o *Own) Has(a netip.Addr, now time.Time) bool {
	if a.IsLoopback() {
		return true
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.addrs == nil || now.Sub(o.at) > 10*time.Second {
		o.at, o.addrs = now, map[netip.Addr]struct{}{}
		all, _ := net.InterfaceAddrs()
		for _, one := range all {
			if n, ok := one.(*net.IPNet); ok {
				if own, ok := netip.AddrFromSlice(n.IP); ok {
					o.addrs[own.Unmap()] = struct{}{}
				}
			}
		}
	}
	_, own := o.addrs[a.WithZone("")]
	return own
}

// AnswersAnything is true of UDP ports whose services need no request: echo, daytime,
// quote of the day, character generator; and of 0, which is nobody's. A server that answers
// what is forged to come from there is answered, for ever (CVE-2024-2169).
func AnswersAnything(port uint16) bool {
	return port == 0 || port == 7 || port == 13 || port == 17 || port == 19
}
