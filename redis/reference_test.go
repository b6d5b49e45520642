package redis

import (
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// dump shows all of a Value and nothing else, so that equal dumps are equal Values.
func dump(v Value) string {
	switch v.kind {
	case 0:
		return "_"
	case KindError:
		e := v.Err().(*Error)
		return fmt.Sprintf("-%q", strings.TrimSuffix(e.Code+" "+e.Msg, " "))
	case failed:
		return "failed: " + v.Err().Error()
	case KindInt, KindBool:
		return fmt.Sprintf("%c%d", v.kind, v.num)
	case KindDouble:
		return fmt.Sprintf(",%v", v.double())
	case KindArray, KindSet, KindMap, KindPush:
		parts := make([]string, 0, v.num)
		for _, e := range v.elements() {
			parts = append(parts, dump(e))
		}
		return fmt.Sprintf("%c[%s]", v.kind, strings.Join(parts, " "))
	}
	return fmt.Sprintf("%c%q", v.kind, v.text())
}

// reference is the differential: RESP by recursive descent over a stream that is there
// as a whole, without a thought for speed, memory or the stack.
type reference struct {
	rest  []byte
	depth int
	out   []string // what was delivered
}

var (
	errShort  = errors.New("it goes on")
	errWrong  = errors.New("it is wrong")
	errUnsure = errors.New("it depends on what is counted")
)

// parseAll returns the dumps of all values, and why there are no more.
func (r *reference) parseAll() (out []string, err error) {
	for len(r.rest) > 0 {
		v, _, err := r.value("")
		if err != nil {
			return r.out, err
		}
		r.out = append(r.out, v)
	}
	return r.out, nil
}

// value returns the next value that is not a push; with end it may be what ends an
// aggregate instead.
func (r *reference) value(end string) (v string, ended bool, err error) {
	for {
		line, err := r.line()
		if err != nil {
			return "", false, err
		}
		switch kind, arg := line[0], line[1:]; kind {
		case '.':
			if end == "" || arg != "" {
				return "", false, errWrong
			}
			return "", true, nil
		case '|':
			if _, err := r.elements(arg, 2, false); err != nil {
				return "", false, err
			}
		case '>':
			all, err := r.elements(arg, 1, false)
			if err != nil {
				return "", false, err
			}
			r.out = append(r.out, ">["+strings.Join(all, " ")+"]")
			if r.depth == 0 && len(r.rest) == 0 {
				return "", false, errNone
			}
		default:
			v, err := r.plain(kind, arg)
			return v, false, err
		}
	}
}

// errNone is the end of a stream behind a push.
var errNone = errors.New("nothing more")

func (r *reference) plain(kind byte, arg string) (string, error) {
	n, numeral := new(big.Int).SetString(arg, 10)
	numeral = numeral && !strings.Contains(arg, "_")
	switch kind {
	case '+', '-':
		if strings.Contains(arg, "\r") {
			return "", errWrong
		}
		if kind == '-' {
			arg = strings.TrimSuffix(arg, " ")
		}
		return fmt.Sprintf("%c%q", kind, arg), nil
	case ':':
		if !numeral || !n.IsInt64() || len(strings.TrimLeft(arg, "+-")) > 19 {
			return "", errWrong
		}
		return ":" + n.String(), nil
	case '(':
		if !numeral {
			return "", errWrong
		}
		return fmt.Sprintf("(%q", arg), nil
	case '_':
		if arg != "" {
			return "", errWrong
		}
		return "_", nil
	case '#':
		if arg != "t" && arg != "f" {
			return "", errWrong
		}
		return map[string]string{"t": "#1", "f": "#0"}[arg], nil
	case ',':
		if arg == "" || strings.ContainsAny(strings.ToLower(strings.TrimLeft(arg, "+-")), "_xp") ||
			strings.HasPrefix(strings.ToLower(strings.TrimLeft(arg, "+-")), "infi") {
			return "", errWrong
		}
		f, err := strconv.ParseFloat(arg, 64)
		if err != nil && !errors.Is(err, strconv.ErrRange) {
			if signless := strings.ToLower(strings.TrimLeft(arg, "+-")); signless != "nan" || len(arg) > 4 {
				return "", errWrong
			}
			return ",NaN", nil
		}
		return fmt.Sprintf(",%v", f), nil
	case '$', '!', '=':
		return r.text(kind, arg)
	case '*', '~', '%':
		if kind == '*' && arg == "-1" {
			return "_", nil
		}
		each := 1
		if kind == '%' {
			each = 2
		}
		all, err := r.elements(arg, each, true)
		return fmt.Sprintf("%c[%s]", kind, strings.Join(all, " ")), err
	}
	return "", errWrong
}

func (r *reference) text(kind byte, arg string) (string, error) {
	switch {
	case kind == '$' && arg == "-1":
		return "_", nil
	case kind == '$' && arg == "?":
		return r.chunks()
	}
	n, err := length(arg, maxString)
	if err != nil || kind == '=' && n < 4 {
		return "", errWrong
	}
	s, err := r.bytes(n)
	switch {
	case err != nil:
		return "", err
	case kind == '=' && s[3] != ':':
		return "", errWrong
	case kind == '=':
		s = s[4:]
	case kind == '!':
		return fmt.Sprintf("-%q", strings.TrimSuffix(s, " ")), nil
	}
	return fmt.Sprintf("%c%q", kind, s), nil
}

func (r *reference) chunks() (string, error) {
	for all := ""; ; {
		line, err := r.line()
		if err != nil {
			return "", err
		}
		n, err := length(line[1:], maxString)
		switch {
		case line[0] != ';' || err != nil:
			return "", errWrong
		case n == 0:
			return fmt.Sprintf("$%q", all), nil
		}
		s, err := r.bytes(n)
		if err != nil {
			return "", err
		}
		all += s
	}
}

func (r *reference) elements(arg string, each int, streamed bool) (all []string, err error) {
	n, end := -1, "."
	if arg != "?" || !streamed {
		most := maxValue / (each * int(sizeOfValue))
		if n, err = length(arg, most); err != nil {
			return nil, err
		}
		if n > most-1<<20 {
			return nil, errUnsure
		}
		n, end = n*each, ""
	}
	if n == 0 {
		return nil, nil
	}
	if r.depth++; r.depth > maxDepth {
		return nil, errWrong
	}
	for len(all) != n {
		v, ended, err := r.value(end)
		if err != nil {
			return nil, err
		}
		if ended {
			if len(all)%each != 0 {
				return nil, errWrong
			}
			break
		}
		all = append(all, v)
	}
	r.depth--
	return all, nil
}

func length(arg string, most int) (int, error) {
	n, err := strconv.ParseUint(arg, 10, 62)
	if err != nil || n > uint64(most) || len(arg) > 18 {
		return 0, errWrong
	}
	return int(n), nil
}

// line returns a line without its end.
func (r *reference) line() (string, error) {
	if len(r.rest) == 0 {
		return "", errShort
	}
	most := 512
	switch {
	case strings.IndexByte("+-(", r.rest[0]) >= 0:
		most = 64 << 10
	case strings.IndexByte(":$*_#,!=%~>|;.", r.rest[0]) < 0:
		return "", errWrong
	}
	text, _, found := strings.Cut(string(r.rest), "\n")
	switch {
	case !found && len(text) < most+3:
		return "", errShort
	case len(text) >= most+3, len(text) < 2 || text[len(text)-1] != '\r':
		return "", errWrong
	}
	r.rest = r.rest[len(text)+1:]
	return text[:len(text)-1], nil
}

// bytes returns n bytes and passes over the CR LF behind them.
func (r *reference) bytes(n int) (string, error) {
	if len(r.rest) < n {
		return "", errShort
	}
	s, end := string(r.rest[:n]), r.rest[n:]
	if !strings.HasPrefix("\r\n", string(end[:min(2, len(end))])) {
		return "", errWrong
	}
	if len(end) < 2 {
		return "", errShort
	}
	r.rest = end[2:]
	return s, nil
}
