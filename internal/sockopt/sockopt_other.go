//go:build (!unix && !windows) || aix

package sockopt

func (o Options) set(uintptr) error { return nil }

func poll(uintptr) Readiness { return Unknown }
