package redis

import (
	"errors"
	"math"
	"strconv"
)

var (
	errNoCommand = errors.New("redis: a command needs a name")
	errArgument  = errors.New("redis: an argument is none of string, []byte, integer, float and bool")
)

// appendCommand appends a command: an array of strings, which may hold any bytes. The
// arguments do not escape, so that calling Do costs nothing for them.
func appendCommand(dst []byte, args []any) ([]byte, error) {
	if len(args) == 0 {
		return dst, errNoCommand
	}
	start := len(dst)
	dst = appendLine(dst, '*', len(args))
	for i, arg := range args {
		var ok bool
		if dst, ok = appendArg(dst, arg); !ok {
			return dst[:start], badArgument(i, typeOf(arg))
		}
	}
	return dst, nil
}

func badArgument(i int, kind string) error {
	return &argumentError{i, kind}
}

// argumentError names the argument that cannot be sent.
type argumentError struct {
	index int
	kind  string
}

func (e *argumentError) Error() string {
	return errArgument.Error() + ": number " + strconv.Itoa(e.index+1) + " is a " + e.kind
}

func (e *argumentError) Unwrap() error { return errArgument }

func appendArg(dst []byte, arg any) ([]byte, bool) {
	switch v := arg.(type) {
	case string:
		return appendBulk(dst, v), true
	case []byte:
		return appendBulk(dst, v), true
	case int:
		return appendInt(dst, int64(v)), true
	case int64:
		return appendInt(dst, v), true
	case int32:
		return appendInt(dst, int64(v)), true
	case int16:
		return appendInt(dst, int64(v)), true
	case int8:
		return appendInt(dst, int64(v)), true
	case uint:
		return appendUint(dst, uint64(v)), true
	case uint64:
		return appendUint(dst, v), true
	case uint32:
		return appendUint(dst, uint64(v)), true
	case uint16:
		return appendUint(dst, uint64(v)), true
	case uint8:
		return appendUint(dst, uint64(v)), true
	case float64:
		return appendFloat(dst, v, 64), true
	case float32:
		return appendFloat(dst, float64(v), 32), true
	case bool:
		return appendInt(dst, int64(b2i(v))), true
	}
	return dst, false
}

func appendBulk[T string | []byte](dst []byte, s T) []byte {
	dst = appendLine(dst, '$', len(s))
	dst = append(dst, s...)
	return append(dst, '\r', '\n')
}

func appendInt(dst []byte, n int64) []byte {
	var digits [20]byte
	return appendBulk(dst, strconv.AppendInt(digits[:0], n, 10))
}

func appendUint(dst []byte, n uint64) []byte {
	var digits [20]byte
	return appendBulk(dst, strconv.AppendUint(digits[:0], n, 10))
}

func appendFloat(dst []byte, f float64, bits int) []byte {
	if math.IsInf(f, 0) || math.IsNaN(f) {
		return appendBulk(dst, formatFloat(f))
	}
	var digits [32]byte
	return appendBulk(dst, strconv.AppendFloat(digits[:0], f, 'g', -1, bits))
}

func appendLine(dst []byte, kind byte, n int) []byte {
	dst = append(dst, kind)
	if n < 10 {
		dst = append(dst, byte('0'+n))
	} else {
		dst = strconv.AppendInt(dst, int64(n), 10)
	}
	return append(dst, '\r', '\n')
}
