package serve

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast/internal/mmsg"
)

// ErrAmplification is what Reply returns when the reply is too long for a source that
// has not been validated: a shorter one may do, that tells it to prove itself.
var ErrAmplification = errors.New("serve: the reply is too long for an unvalidated source")

var errNoAddress = errors.New("serve: the sender has no address to reply to")

// Packet is a datagram that is being handled. It and its Data are the handler's until
// it returns; its methods are for the handler's goroutine.
type Packet struct {
	Data  []byte         // which the handler may change, but not append to
	From  netip.AddrPort // v4 is v4, in whatever form it came; the zero value is no IP
	Local netip.Addr     // the address that was asked; the zero Addr where that is unknown
	Addr  net.Addr       // of the sender, where From is not all that is known; else nil

	w         *worker
	m         *mmsg.Message // as it came
	allowed   int           // bytes of replies
	sent      int           // of them
	validated bool          // so there is no limit
}

// Reply copies b, and sends it when the batch has been handled: from the address that
// was asked, to where the datagram came from. It may be called several times. That it
// returns nil does not mean that the reply arrives; what could not even be sent is
// counted.
func (p *Packet) Reply(b []byte) error {
	w := p.w
	switch {
	case len(b) > maxDatagram:
		return fmt.Errorf("serve: a reply of %d bytes: %w", len(b), syscall.EMSGSIZE)
	case !p.m.Peer.IsValid() && (p.Addr == nil || p.Addr.String() == ""):
		return errNoAddress
	case p.sent+len(b) > p.allowed && !p.isValidated():
		w.amplified++
		return ErrAmplification
	}
	p.sent += len(b)
	w.queue(p, b)
	return nil
}

// Validate says that the sender does receive at the address it sends from: the datagram
// has in it what only a reply to that address can have told it. For it, and for those
// that come from this address and port within the next minute, [PacketLimits] set no
// Amplification.
func (p *Packet) Validate() {
	p.validated = true
	s := p.w.s
	s.validated.put(p.m.Peer, p.w.now.Add(validFor), 1)
}

// validFor is how long a source is believed.
const validFor = time.Minute

// isValidated is asked for long replies only.
func (p *Packet) isValidated() bool {
	if p.validated || p.w.s.limits.Amplification < 0 || !p.m.Peer.IsValid() {
		return true
	}
	until, ok := p.w.s.validated.get(p.m.Peer)
	p.validated = ok && p.w.now.Before(until)
	return p.validated
}
