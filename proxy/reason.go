package proxy

import "errors"

// Reason is why a connection ended: the first thing that went towards it. Its text form
// is the label of metrics and logs.
type Reason uint8

const (
	Open          Reason = iota // it has not ended
	ClientClosed                //
	BackendClosed               //
	ClientReset                 //
	BackendReset                //
	ClientLost                  // it did not answer any more
	BackendLost                 //
	Idle                        // for Timeouts.Idle
	HalfClosed                  // for Timeouts.HalfClosed
	Stalled                     // a side took nothing for Timeouts.Write
	TooOld                      // Timeouts.Lifetime
	BadHello                    // no PROXY header or ClientHello, a wrong one, or none in time
	Denied                      // by the limits
	NoRoute                     // for the name it asked for
	NoBackend                   // could be connected
	QueueFull                   //
	QueueTimeout                //
	BackendDown                 // and Backends.Down says what then
	Drained                     // the proxy ended, and it was quiet
	Cut                         // the proxy ended, and could not wait
	Answered                    // a session of datagrams, of which no response is missing
	Evicted                     // a session of datagrams that made room for another
	reasons
)

var reasonNames = [reasons]string{
	"open", "client closed", "backend closed", "client reset", "backend reset", "client lost", "backend lost",
	"idle", "half closed", "stalled", "lifetime", "bad hello", "denied", "no route", "no backend",
	"queue full", "queue timeout", "backend down", "drained", "cut", "answered", "evicted",
}

func (r Reason) String() string               { return reasonNames[r] }
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

func endedBy(s side) Reason { return [...]Reason{ClientClosed, BackendClosed}[s] }

func resetBy(s side, err error) Reason {
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		return [...]Reason{ClientLost, BackendLost}[s]
	}
	return [...]Reason{ClientReset, BackendReset}[s]
}
