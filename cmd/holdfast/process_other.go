//go:build !unix

package main

import (
	"errors"
	"os"
)

// No process is succeeded here.
var demoRestart []os.Signal

func (p *process) restart() error { return errors.ErrUnsupported }

// freeze looks the same from outside as a stopped process: connects succeed,
// nothing is answered.
func (p *process) freeze() error { return p.say("delay 1h") }

func (p *process) thaw() error { return p.say("delay 0s") }
