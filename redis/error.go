package redis

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"
)

var (
	// Nil is the answer that there is nothing: no such key, no such field, a SET with NX
	// that did not, a wait that was in vain.
	Nil error = answer("redis: nil")

	// ErrProtocol is a server that does not speak RESP, or asks for too much memory. The
	// connection is closed. What was wrong is said with at most 16 bytes of it.
	ErrProtocol = errors.New("redis: protocol error")
)

// answer is an error that is no failure.
type answer string

func (a answer) Error() string { return string(a) }

// Error is what a server answered instead of a value.
type Error struct {
	Code string // the first word, such as ERR, WRONGTYPE or NOSCRIPT
	Msg  string // the rest; it may repeat arguments of the command
}

// Error is the code and the message on one line, 512 bytes of it at most.
func (e *Error) Error() string { return strings.TrimRight("redis: "+clip(e.Code+" "+e.Msg), " ") }

// clip makes what a server wrote fit for the line of a log.
func clip(s string) string {
	const most = 512
	rest := ""
	if len(s) > most {
		s, rest = s[:most], "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return ' '
		}
		return r
	}, s) + rest
}

func parseError(s string) *Error {
	code, msg, _ := strings.Cut(s, " ")
	return &Error{code, msg}
}

// notRun reports whether err is an error by which a server refused a command before it
// ran, for a reason that another moment or another server cures. It can be sent again,
// whatever it does.
//
// A script meets the same errors halfway, after other commands of it have run. Redis 7
// names the script then, older ones answer ERR. Not found out is a script that returns
// such an error of its own (redis.error_reply): who writes it says that it can be
// repeated.
func notRun(err error) bool {
	e, ok := errors.AsType[*Error](err)
	if !ok || strings.Contains(e.Msg, " script: ") {
		return false
	}
	switch e.Code {
	case "LOADING", // the server reads its data
		"READONLY", "MASTERDOWN", "NOREPLICAS", // a replica, or a primary that lost its own
		"TRYAGAIN", "CLUSTERDOWN": // the slot is moving, or nowhere
		return true
	}
	// NOAUTH, NOPERM, OOM, MISCONF and BUSY have not run it either, but no second
	// attempt fares better soon; MOVED and ASK name a server that we would not ask.
	return false
}

// demoted reports whether err says that the server is a replica. It will say so until it
// is promoted again: connections that want a primary must go elsewhere.
func demoted(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Code == "READONLY"
}
