package mmsg_test

import (
	"testing"

	"github.com/holdfast-net/holdfast/internal/mmsg"
)

// One datagram there and back, without anybody waiting: what the calls cost by themselves.
func BenchmarkOneDatagram(b *testing.B) {
	b.Run("batch", func(b *testing.B) {
		udp := listen(b, "127.0.0.1:0")
		udp.SetDeadline(timeless)
		c := mmsg.New(udp, mmsg.Options{})
		in, out := buffers(c, 64, 2048), []mmsg.Message{{Buf: make([]byte, 64), Peer: addrOf(udp)}}
		for b.Loop() {
			c.Send(out)
			c.Receive(in)
		}
	})
	b.Run("net", func(b *testing.B) {
		udp := listen(b, "127.0.0.1:0")
		udp.SetDeadline(timeless)
		buf, to := make([]byte, 2048), addrOf(udp)
		for b.Loop() {
			udp.WriteToUDPAddrPort(buf[:64], to)
			udp.ReadFromUDPAddrPort(buf)
		}
	})
}
