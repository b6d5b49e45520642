package redis

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
)

// maxArgs is the most that Redis before 7 takes; it closes the connection on more, and
// with it what others have under way there.
const maxArgs = 1 << 20

// appendCommand appends a command to dst: an array of strings, whatever bytes they are.
// The first argument is its name, a string. Others are strings, []byte, integers and
// floats of any size, or bool, which is 1 or 0.
//
// Anything else is an error that names its type, and dst is returned as it was: nil and
// pointers have no text, a type with a name of its own may mean another one than its
// kind has, and of a time.Duration only the caller knows whether this command counts
// seconds or milliseconds.
//
// It lets no argument escape, so that a call with a few numbers allocates nothing.
func appendCommand(dst []byte, args []any) ([]byte, error) {
	if err := checkCommand(args); err != nil {
		return dst, err
	}
	start := len(dst)
	dst = appendLength(dst, '*', len(args))
	for i, arg := range args {
		more, err := appendArg(dst, arg)
		if err != nil {
			return dst[:start], fmt.Errorf("redis: argument %d of %s %w", i, nameOf(args), err)
		}
		dst = more
	}
	return dst, nil
}

func checkCommand(args []any) error {
	if len(args) == 0 {
		return errors.New("redis: a command without a name")
	}
	if _, ok := args[0].(string); !ok {
		return fmt.Errorf("redis: the name of a command is a %s and must be a string", typeOf(args[0]))
	}
	if len(args) > maxArgs {
		return fmt.Errorf("redis: %d arguments of %s where %d are the most", len(args), nameOf(args), maxArgs)
	}
	return nil
}

func appendArg(dst []byte, arg any) ([]byte, error) {
	switch a := arg.(type) {
	case string:
		return appendString(dst, a)
	case []byte:
		return appendString(dst, a)
	case int:
		return appendInt(dst, int64(a)), nil
	case int64:
		return appendInt(dst, a), nil
	case int32:
		return appendInt(dst, int64(a)), nil
	case int16:
		return appendInt(dst, int64(a)), nil
	case int8:
		return appendInt(dst, int64(a)), nil
	case uint:
		return appendUint(dst, uint64(a)), nil
	case uint64:
		return appendUint(dst, a), nil
	case uint32:
		return appendInt(dst, int64(a)), nil
	case uint16:
		return appendInt(dst, int64(a)), nil
	case uint8:
		return appendInt(dst, int64(a)), nil
	case float64:
		return appendDouble(dst, a, 64), nil
	case float32:
		return appendDouble(dst, float64(a), 32), nil
	case bool:
		if a {
			return appendInt(dst, 1), nil
		}
		return appendInt(dst, 0), nil
	}
	return dst, fmt.Errorf("is a %s; strings, []byte, numbers and bool can be sent", typeOf(arg))
}

func appendString[S string | []byte](dst []byte, s S) ([]byte, error) {
	if len(s) > maxString {
		return dst, fmt.Errorf("has %d bytes where %d are the most", len(s), maxString)
	}
	dst = appendLength(dst, '$', len(s))
	dst = append(dst, s...)
	return append(dst, '\r', '\n'), nil
}

func appendLength(dst []byte, kind byte, n int) []byte {
	if n < 10 {
		return append(dst, kind, byte('0'+n), '\r', '\n')
	}
	dst = strconv.AppendInt(append(dst, kind), int64(n), 10)
	return append(dst, '\r', '\n')
}

func appendInt(dst []byte, n int64) []byte {
	if 0 <= n && n < 10 {
		return append(dst, '$', '1', '\r', '\n', byte('0'+n), '\r', '\n')
	}
	var text [20]byte
	return appendNumber(dst, strconv.AppendInt(text[:0], n, 10))
}

func appendUint(dst []byte, n uint64) []byte {
	var text [20]byte
	return appendNumber(dst, strconv.AppendUint(text[:0], n, 10))
}

func appendDouble(dst []byte, f float64, bits int) []byte {
	var text [32]byte
	return appendNumber(dst, appendFloat(text[:0], f, bits))
}

func appendNumber(dst, text []byte) []byte {
	dst = appendLength(dst, '$', len(text))
	dst = append(dst, text...)
	return append(dst, '\r', '\n')
}

// appendFloat writes the shortest decimal that is the same number when it is read, and
// inf, -inf and nan as Redis does.
func appendFloat(dst []byte, f float64, bits int) []byte {
	switch {
	case math.IsInf(f, 1):
		return append(dst, "inf"...)
	case math.IsInf(f, -1):
		return append(dst, "-inf"...)
	case math.IsNaN(f):
		return append(dst, "nan"...)
	}
	return strconv.AppendFloat(dst, f, 'g', -1, bits)
}

// nameOf is a copy, for an error that keeps the name would make all arguments escape.
func nameOf(args []any) string {
	name, _ := args[0].(string)
	return strings.Clone(name[:min(len(name), 32)])
}

// typeOf looks at the type alone, which does not make arg escape.
func typeOf(arg any) string {
	if arg == nil {
		return "nil"
	}
	return reflect.TypeOf(arg).String()
}
