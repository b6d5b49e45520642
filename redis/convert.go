package redis

import (
	"fmt"
	"iter"
	"math"
	"strconv"
	"unsafe"
)

// TypeError is a conversion that a Value does not fit: neither its type nor, for a
// string that should be a number, what is in it. It never repeats the content.
type TypeError struct {
	Kind Kind   // of the Value
	Want string // the Go type that was asked for
}

func (e *TypeError) Error() string { return fmt.Sprintf("redis: the %s is no %s", e.Kind, e.Want) }

// misfit is the error of a conversion to want.
func (v Value) misfit(want string) error {
	if err := v.Err(); err != nil {
		return err
	}
	return &TypeError{v.kind, want}
}

// within is an error of an element.
func within(i int, err error) error { return fmt.Errorf("%w (in element %d)", err, i) }

// Text returns a string of any bytes: a string or a status as it is, a number in
// decimal, and a boolean as the 1 or 0 that it is in RESP2.
func (v Value) Text() (string, error) {
	switch v.kind {
	case KindString, KindStatus, KindVerbatim, KindBigNumber:
		return v.text(), nil
	case KindInt, KindBool:
		return strconv.FormatInt(v.num, 10), nil
	case KindDouble:
		return string(appendFloat(nil, v.double(), 64)), nil
	}
	return "", v.misfit("string")
}

// Bytes returns what Text returns. A string is not copied: who changes the bytes
// changes the Value, and what Text returned of it.
func (v Value) Bytes() ([]byte, error) {
	switch v.kind {
	case KindString, KindVerbatim:
		if v.num == 0 {
			return []byte{}, nil
		}
		return unsafe.Slice((*byte)(v.ptr), v.num), nil
	}
	s, err := v.Text()
	switch err.(type) {
	case nil:
		return []byte(s), nil
	case *TypeError:
		return nil, &TypeError{v.kind, "[]byte"}
	}
	return nil, err
}

// Int returns an integer: one that is sent as such, that is written in a string, or
// that a double is exactly.
func (v Value) Int() (int64, error) {
	switch v.kind {
	case KindInt, KindBool:
		return v.num, nil
	case KindString, KindStatus, KindVerbatim, KindBigNumber:
		if n, ok := parseInt(v.text()); ok {
			return n, nil
		}
	case KindDouble:
		// 2^63 is a float64, the largest int64 is not.
		if f := v.double(); f >= math.MinInt64 && f < -math.MinInt64 && f == math.Trunc(f) {
			return int64(f), nil
		}
	}
	return 0, v.misfit("int64")
}

// Float returns a number, infinite ones and NaN too.
func (v Value) Float() (float64, error) {
	switch v.kind {
	case KindDouble:
		return v.double(), nil
	case KindInt, KindBool:
		return float64(v.num), nil
	case KindString, KindStatus, KindVerbatim, KindBigNumber:
		if f, ok := parseDouble(v.text()); ok {
			return f, nil
		}
	}
	return 0, v.misfit("float64")
}

// Bool returns a boolean, or whether an integer is not 0, which is what EXISTS, SETNX
// and their like say; the strings "1" and "0" are integers.
func (v Value) Bool() (bool, error) {
	switch v.kind {
	case KindBool, KindInt:
		return v.num != 0, nil
	case KindString, KindStatus, KindVerbatim:
		if s := v.text(); s == "1" || s == "0" {
			return s == "1", nil
		}
	}
	return false, v.misfit("bool")
}

// Values returns the elements of an array, a set or a push, and the keys and values of
// a map in turn, which is how RESP2 sends it. Each of them may be null or an error, as
// after EXEC. They are the Value's own: do not change the slice. It is empty, not nil,
// where there are none.
func (v Value) Values() ([]Value, error) {
	switch v.kind {
	case KindArray, KindSet, KindMap, KindPush:
		if v.num == 0 {
			return []Value{}, nil
		}
		return v.elements(), nil // its capacity is its length
	}
	return nil, v.misfit("[]Value")
}

// Strings returns the Text of all elements. One that is null is the error [Nil], for
// "" would be something else: after MGET or HMGET of keys that may be missing, ask
// Values.
func (v Value) Strings() ([]string, error) {
	elements, err := v.Values()
	if err != nil {
		return nil, v.misfit("[]string")
	}
	all := make([]string, len(elements))
	for i, e := range elements {
		if all[i], err = e.Text(); err != nil {
			return nil, within(i, err)
		}
	}
	return all, nil
}

// Map returns the Text of all keys and values of what [Value.Pairs] reads. Of equal keys
// the last one stays.
func (v Value) Map() (map[string]string, error) {
	p, err := v.pairs("map[string]string")
	if err != nil {
		return nil, err
	}
	all := make(map[string]string, p.len())
	for i := range p.len() {
		key, value := p.at(i)
		k, err := key.Text()
		if err != nil {
			return nil, within(p.index(i), err)
		}
		if all[k], err = value.Text(); err != nil {
			return nil, within(p.index(i)+p.step-1, err)
		}
	}
	return all, nil
}

// Pairs iterates over keys and values in the order of the reply: of a map, of a flat
// array of them in turn, or of an array of arrays of two, as ZRANGE WITHSCORES and XREAD
// answer in one of the protocols.
func (v Value) Pairs() (iter.Seq2[Value, Value], error) {
	p, err := v.pairs("iter.Seq2[Value, Value]")
	if err != nil {
		return nil, err
	}
	return func(yield func(key, value Value) bool) {
		for i := range p.len() {
			if !yield(p.at(i)) {
				return
			}
		}
	}, nil
}

// pairs are keys and values: two elements each, or one with both in it.
type pairs struct {
	elements []Value
	step     int
}

func (p pairs) len() int        { return len(p.elements) / p.step }
func (p pairs) index(i int) int { return i * p.step }

func (p pairs) at(i int) (key, value Value) {
	if p.step == 1 {
		both := p.elements[i].elements()
		return both[0], both[1]
	}
	return p.elements[2*i], p.elements[2*i+1]
}

func (v Value) pairs(want string) (pairs, error) {
	elements, err := v.Values()
	switch {
	case err != nil:
		return pairs{}, v.misfit(want)
	case v.kind != KindMap && areAllPairs(elements): // no key is an array
		return pairs{elements, 1}, nil
	case len(elements)%2 != 0:
		return pairs{}, v.misfit(want)
	}
	return pairs{elements, 2}, nil
}

func areAllPairs(elements []Value) bool {
	for _, e := range elements {
		if e.kind != KindArray || e.num != 2 {
			return false
		}
	}
	return true
}
