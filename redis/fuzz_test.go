package redis

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
)

// perByte is what may be allocated for a byte that comes, garbage included: an error
// takes three on the wire, and in memory itself, its place in an array, and the arrays
// that were too short before.
const perByte = 64

// Any bytes: no panic, nothing consumed beyond them, memory in proportion to them, the
// values that the naive reference finds, and the same however they are split, which seed
// decides.
func FuzzDecode(f *testing.F) {
	for _, c := range corpus {
		f.Add([]byte(c.stream), uint64(1))
	}
	stream, _ := corpusStream()
	f.Add(stream, uint64(2))
	for _, s := range []string{"$536870912\r\nx", "*44000000\r\n*?\r\n", "*1\r\n*1\r\n$?\r\n;1\r\na", "%?\r\n:1\r\n.\r\n", ">1\r\n.\r\n", "$3\r\nab", ",infinity\r\n", "=3\r\nab\r\n", "+a\n"} {
		f.Add([]byte(s), uint64(3))
	}
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		var values []Value
		var whole error
		d := new(decoder)
		total := allocated(func() { values, whole = decodeOnly(d, b) })
		if most := uint64(smallString + 16<<10 + perByte*len(b)); total > most {
			t.Fatalf("%d bytes allocated for %d, want at most %d", total, len(b), most)
		}
		checkReference(t, b, dumpAll(values), whole)
		for _, v := range values {
			useAll(v)
		}

		got, err := decodeAll(t, new(decoder), randomPieces(rand.New(rand.NewPCG(seed, 0)), b)...)
		if !slices.Equal(got, dumpAll(values)) || (err == nil) != (whole == nil) || err != nil && err.Error() != whole.Error() {
			t.Fatalf("in pieces %s, %v; whole %s, %v", got, err, dumpAll(values), whole)
		}
	})
}

// decodeOnly allocates nothing but what the decoder does, and a slice.
func decodeOnly(d *decoder, b []byte) (values []Value, err error) {
	for len(b) > 0 {
		v, n, done, err := d.Decode(b)
		if err != nil {
			return values, err
		}
		if done {
			values = append(values, v)
		}
		b = b[n:]
	}
	return values, nil
}

func checkReference(t *testing.T, b []byte, got []string, err error) {
	t.Helper()
	want, end := (&reference{rest: bytes.Clone(b)}).parseAll()
	if errors.Is(end, errUnsure) {
		return
	}
	if !slices.Equal(got, want) || (err != nil) != errors.Is(end, errWrong) {
		t.Fatalf("%s, %v; the reference says %s, %v", got, err, want, end)
	}
}

// useAll converts a Value to everything, which must not panic, and must say nothing
// about a Value it fails for.
func useAll(v Value) {
	v.Text()
	v.Bytes()
	v.Int()
	v.Float()
	v.Bool()
	v.Strings()
	v.Map()
	if all, err := v.Pairs(); err == nil {
		for range all {
		}
	}
	if s := v.String(); len(s) > 4096 {
		panic("a preview of a page")
	}
	all, _ := v.Values()
	for _, e := range all {
		useAll(e)
	}
}

// What is encoded is decoded as it was: an array of strings.
func FuzzCommand(f *testing.F) {
	f.Add("SET", []byte("key\r\n"), int64(-1), 1.5, true)
	f.Add("", []byte{}, int64(10), 0.0, false)
	f.Fuzz(func(t *testing.T, name string, b []byte, n int64, x float64, yes bool) {
		b2, err := appendCommand([]byte("before"), []any{name, b, n, x, uint64(n), float32(x), yes, int8(n)})
		if err != nil {
			t.Fatal(err)
		}
		d := new(decoder)
		v, used, done, err := d.Decode(b2[len("before"):])
		if err != nil || !done || used != len(b2)-len("before") || v.Kind() != KindArray {
			t.Fatalf("%q: %v, %d of %d, %v, %v", b2, v, used, len(b2), done, err)
		}
		all, _ := v.Values()
		text, _ := all[0].Text()
		raw, _ := all[1].Bytes()
		integer, intErr := all[2].Int()
		double, floatErr := all[3].Float()
		unsigned, _ := all[4].Text()
		single, _ := all[5].Float()
		truth, _ := all[6].Bool()
		small, _ := all[7].Int()
		switch {
		case len(all) != 8, text != name, !bytes.Equal(raw, b), raw == nil, integer != n, intErr != nil, floatErr != nil,
			double != x && x == x, !(len(unsigned) > 0), float32(single) != float32(x) && x == x, truth != yes, small != int64(int8(n)):
			t.Fatalf("%v", v)
		}
	})
}
