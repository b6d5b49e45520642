//go:build !linux

package mmsg

import "net"

type batch struct{}

func newBatch(*net.UDPConn, bool, Options) *batch { return nil }

func (*batch) receive([]Message) (int, error) { panic("there are no batches here") }
func (*batch) poll([]Message) (int, error)    { panic("there are no batches here") }
func (*batch) send([]Message) (int, error)    { panic("there are no batches here") }
