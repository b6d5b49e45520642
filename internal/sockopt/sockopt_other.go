//go:build !unix

package sockopt

func (o Options) beforeConnect(uintptr) error { return nil }

func poll(uintptr) Readiness { return Unknown }
