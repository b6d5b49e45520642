// Package fault makes a good network bad, for tests: it wraps connections and delays,
// slows, slices, stops, cuts or resets what they carry, and heals them again while
// they are in use. Datagrams it loses, repeats, reorders, corrupts and truncates as well.
//
//	faults := fault.New(fault.Plan{
//		Up:   fault.Link{Latency: 40 * time.Millisecond},
//		Down: fault.Link{Latency: 40 * time.Millisecond, Bandwidth: 1 << 20},
//	})
//	defer faults.Close()
//
//	c, err := holdfast.New(endpoints, holdfast.Config{Dial: faults.Dial(nil)})
//	…                                   // works, slowly
//	faults.Set(fault.Plan{Down: fault.Link{After: 100, Then: fault.Reset}})
//	…                                   // replies break off at byte 100
//	faults.Set(fault.Plan{})            // all is well
//
// A [Plan] says what happens and is a plain value. An [Injector] makes it happen, on any
// [net.Conn], on what a [net.Listener] accepts, on what a dial function returns, and on any
// [net.PacketConn]. It wraps one side; the other may be in another process and does not
// know.
//
// # Directions
//
// Up is what the wrapped side writes, Down what it reads, and each has a [Link] of its
// own. The faults that tests ask for, in these terms:
//
//	slow network       Latency and Jitter, both ways
//	thin pipe          Bandwidth
//	torn messages      Slice: 1; Slice: 1, Bandwidth: 20 for a slowloris
//	torn frame         Down: After: n, Then: Cut
//	reset in a reply   Down: After: n, Then: Reset
//	write fails midway Up: After: n, Then: Reset
//	black hole         Then: BlackHole, one way
//	half-open          Then: BlackHole, both ways: neither side hears of the other,
//	                   nor of its end; Then: Reset afterwards is the answer of a peer
//	                   that has forgotten
//	peer that is stuck Up: Buffer: 4096, Then: BlackHole
//	outage             Injector.Cut or Injector.Reset, for all connections at once
//
// # Datagrams
//
// A [net.PacketConn], and a [net.Conn] over UDP too, has the faults of [Packets]:
//
//		sock, err := net.ListenPacket("udp", ":0")
//		faults := fault.New(fault.Plan{Seed: 7, Up: fault.Link{
//			Latency: 20 * time.Millisecond,
//			Packets: fault.Packets{Loss: 0.01, Duplicate: 0.01, Burst: fault.Burst{Gap: 500, Length: 5}},
//		}})
//		sock = faults.PacketConn(sock)
//
//	  - The same seed and plan give the same fate to the same sequence of datagrams, each
//	    direction of each socket by itself.
//	  - What a fault does not name it does not touch: a datagram that is not lost or dropped
//	    arrives, once unless duplicated, whole unless truncated, and as it was but for one
//	    bit if it is corrupted. Without Jitter and Reorder the order is kept under a plan.
//	  - Memory is bounded by Link.Buffer; what finds no room is dropped, and counted.
//	    [Stats] says what was done to how many.
//	  - A clean link costs a mutex and two counters. Down, the first fault begins a
//	    goroutine that lives as long as the socket; up, the first datagram that takes time.
//
// # What is promised to streams
//
//   - What arrives is a beginning of what was sent, whatever the plans: nothing is
//     reordered, changed, repeated or left out. A black hole holds bytes as TCP does,
//     which sends them until they are acknowledged, and gives them back when it ends.
//   - Latency delays, and does not slow down: what was written 1 ms apart arrives 1 ms
//     apart. Only so much may be under way, 64 KiB unless Link.Buffer says otherwise,
//     as with a TCP window; then Write waits.
//   - A new plan holds for all connections when Set returns, for bytes under way and
//     for calls that wait. An end that has struck is final, except a black hole.
//   - The end travels like bytes: a peer sees CloseWrite and Close after the latency and
//     behind the data, or in a black hole not at all. Close does not wait for that.
//   - Deadlines and Close end calls that wait, as ever. Errors are those of package
//     net: [net.OpError] around [net.ErrClosed], [os.ErrDeadlineExceeded],
//     ECONNRESET or EPIPE; [io.EOF] as it is.
//   - The same Seed gives the n-th connection the same random choices.
//   - While its link is clean, a direction is the connection's own, at the cost of a
//     mutex. After its first fault it has a goroutine and a copy of the bytes, for good.
//   - It works in a testing/synctest bubble, where times are exact. Close the Injector
//     before the bubble ends: a closed connection may have bytes under way.
//
// # Limits
//
// A stream here is above a kernel that has its own buffers. What the kernel has taken
// is out of reach: a reset that follows n bytes may overtake those for which the peer's
// window had no room, as the RST of a real host does. Choices are the same for the same
// pieces, and how a socket's stream falls into pieces is the kernel's: byte counts are
// exact there, jitter and slices alike in kind. Dials are not delayed; a wrapped
// connection is no [syscall.Conn]. Put faults below TLS, not above: a *tls.Conn is
// broken by a Write that is interrupted, as Set may do.
//
// A wrapped datagram socket is no *net.UDPConn: whoever asks for one (for ancillary data,
// or many datagrams in a call) does not find it. A datagram above 64 KiB, which UDP does
// not have and Unix does, loses its end on a way down with faults.
package fault
