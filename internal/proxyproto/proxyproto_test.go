package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

const (
	max4 = "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n"
	max6 = "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n"
	maxU = "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n"
)

// raw2 is a header of version 2, as the specification draws it.
func raw2(command, family byte, body ...string) string {
	rest := strings.Join(body, "")
	fixed := []byte("\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A")
	fixed = binary.BigEndian.AppendUint16(append(fixed, command, family), uint16(len(rest)))
	return string(fixed) + rest
}

func rawTLV(kind byte, value string) string {
	return string(binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(value)))) + value
}

// rawSum is a header whose last TLV is the checksum of RFC 4960, Appendix B, made bit by
// bit and not by a table.
func rawSum(command, family byte, body ...string) string {
	b := []byte(raw2(command, family, append(body, rawTLV(TypeCRC32C, "\x00\x00\x00\x00"))...))
	crc := ^uint32(0)
	for _, c := range b {
		crc ^= uint32(c)
		for range 8 {
			crc = crc>>1 ^ -(crc&1)&0x82f63b78
		}
	}
	binary.BigEndian.PutUint32(b[len(b)-sumLen:], ^crc)
	return string(b)
}

func path(s string) string { return s + strings.Repeat("\x00", pathLen-len(s)) }

const (
	body4    = "\xc0\xa8\x00\x01\xc0\xa8\x00\x0b\xdc\x04\x01\xbb"
	src6     = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"
	mapped6  = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x7f\x00\x00\x01"
	ports    = "\xdc\x04\x01\xbb"
	overrun  = "\x02\x00\x05abcd"
	leftover = "\x02\x00"
)

func from(version int, src, dst string, changes ...func(*Header)) Header {
	h := Header{Version: version, Source: netip.MustParseAddrPort(src), Destination: netip.MustParseAddrPort(dst)}
	for _, change := range changes {
		change(&h)
	}
	return h
}

func datagram(h *Header) { h.Datagram = true }

func tlvs(list ...TLV) func(*Header) { return func(h *Header) { h.TLVs = list } }

// same compares headers; the value of a checksum depends on the spelling.
func same(a, b Header) bool {
	equal := func(x, y TLV) bool {
		return x.Type == y.Type && (x.Type == TypeCRC32C || bytes.Equal(x.Value, y.Value))
	}
	return a.Version == b.Version && a.Local == b.Local && a.Source == b.Source && a.Destination == b.Destination &&
		a.SourcePath == b.SourcePath && a.DestinationPath == b.DestinationPath && a.Datagram == b.Datagram &&
		slices.EqualFunc(a.TLVs, b.TLVs, equal)
}

var good = map[string]struct {
	raw  string
	want Header
}{
	"v1, the specification's example": {"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", from(1, "192.168.0.1:56324", "192.168.0.11:443")},
	"v1, longest v4":                  {max4, from(1, "255.255.255.255:65535", "255.255.255.255:65535")},
	"v1, longest v6":                  {max6, from(1, "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535", "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535")},
	"v1, longest of all":              {maxU, Header{Version: 1, Local: true}},
	"v1, unknown, short":              {"PROXY UNKNOWN\r\n", Header{Version: 1, Local: true}},
	"v1, unknown, with nonsense":      {"PROXY UNKNOWN  \x00 nonsense \xff\r\n", Header{Version: 1, Local: true}},
	"v1, ports 0":                     {"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", from(1, "0.0.0.0:0", "0.0.0.0:0")},
	"v1, short v6, any case":          {"PROXY TCP6 ::1 2001:DB8::a 1 2\r\n", from(1, "[::1]:1", "[2001:db8::a]:2")},
	"v1, a mapped address":            {"PROXY TCP6 ::ffff:127.0.0.1 2001:db8::1 1 2\r\n", from(1, "127.0.0.1:1", "[2001:db8::1]:2")},

	"v2, TCP4":               {raw2(0x21, 0x11, body4), from(2, "192.168.0.1:56324", "192.168.0.11:443")},
	"v2, UDP4":               {raw2(0x21, 0x12, body4), from(2, "192.168.0.1:56324", "192.168.0.11:443", datagram)},
	"v2, TCP6":               {raw2(0x21, 0x21, src6, src6, ports), from(2, "[2001:db8::1]:56324", "[2001:db8::1]:443")},
	"v2, UDP6":               {raw2(0x21, 0x22, src6, src6, ports), from(2, "[2001:db8::1]:56324", "[2001:db8::1]:443", datagram)},
	"v2, a mapped address":   {raw2(0x21, 0x21, mapped6, src6, ports), from(2, "127.0.0.1:56324", "[2001:db8::1]:443")},
	"v2, mapped addresses":   {raw2(0x21, 0x21, mapped6, mapped6, ports), from(2, "127.0.0.1:56324", "127.0.0.1:443")},
	"v2, Unix":               {raw2(0x21, 0x31, path("/run/a"), path("/run/b")), Header{Version: 2, SourcePath: "/run/a", DestinationPath: "/run/b"}},
	"v2, Unix datagrams":     {raw2(0x21, 0x32, path("/run/a"), path("/run/b")), Header{Version: 2, SourcePath: "/run/a", DestinationPath: "/run/b", Datagram: true}},
	"v2, Unix, unnamed":      {raw2(0x21, 0x31, path(""), path("/run/b")), Header{Version: 2, DestinationPath: "/run/b"}},
	"v2, Unix, all unnamed":  {raw2(0x21, 0x31, path(""), path("")), Header{Version: 2}},
	"v2, Unix, abstract":     {raw2(0x21, 0x31, path("\x00a"), path("\x00b\x00c")), Header{Version: 2, SourcePath: "@a", DestinationPath: "@b"}},
	"v2, Unix, longest":      {raw2(0x21, 0x31, strings.Repeat("x", 108), path("y\x00garbage")), Header{Version: 2, SourcePath: strings.Repeat("x", 108), DestinationPath: "y"}},
	"v2, TLVs":               {raw2(0x21, 0x11, body4, rawTLV(2, "db.test"), rawTLV(4, ""), rawTLV(0xee, "\x00")), from(2, "192.168.0.1:56324", "192.168.0.11:443", tlvs(TLV{2, []byte("db.test")}, TLV{4, nil}, TLV{0xee, []byte{0}}))},
	"v2, checksum":           {rawSum(0x21, 0x11, body4, rawTLV(5, "id")), from(2, "192.168.0.1:56324", "192.168.0.11:443", tlvs(TLV{5, []byte("id")}, TLV{3, nil}))},
	"v2, longest":            {raw2(0x21, 0x11, body4, rawTLV(0xe0, strings.Repeat("x", MaxV2-fixedLen-12-tlvHead))), from(2, "192.168.0.1:56324", "192.168.0.11:443", tlvs(TLV{0xe0, bytes.Repeat([]byte("x"), MaxV2-fixedLen-12-tlvHead)}))},
	"v2, local":              {raw2(0x20, 0x00), Header{Version: 2, Local: true}},
	"v2, local, checksum":    {rawSum(0x20, 0x00, rawTLV(5, "id")), Header{Version: 2, Local: true, TLVs: []TLV{{5, []byte("id")}, {3, nil}}}},
	"v2, local, addresses":   {raw2(0x20, 0x11, body4), Header{Version: 2, Local: true}},
	"v2, local, and TLVs":    {raw2(0x20, 0x11, body4, rawTLV(5, "id")), Header{Version: 2, Local: true, TLVs: []TLV{{5, []byte("id")}}}},
	"v2, local, cut short":   {raw2(0x20, 0x21, body4), Header{Version: 2, Local: true}},
	"v2, local, overrun":     {raw2(0x20, 0x11, body4, overrun), Header{Version: 2, Local: true}},
	"v2, local, left over":   {raw2(0x20, 0x11, body4, leftover), Header{Version: 2, Local: true}},
	"v2, local, any family":  {raw2(0x20, 0xff, "?"), Header{Version: 2, Local: true}},
	"v2, unspec":             {raw2(0x21, 0x00), Header{Version: 2, Local: true}},
	"v2, unspec, something":  {raw2(0x21, 0x00, "something"), Header{Version: 2, Local: true}},
	"v2, no transport":       {raw2(0x21, 0x10, body4), Header{Version: 2, Local: true}},
	"v2, no family":          {raw2(0x21, 0x01), Header{Version: 2, Local: true}},
	"v2, no transport, Unix": {raw2(0x21, 0x30, "?"), Header{Version: 2, Local: true}},
}

// fused are payloads that would be taken for more of the header by a parser that looks.
var fused = []string{"", "\r\n", "GET / HTTP/1.1\r\n\r\n", rawTLV(TypeAuthority, "evil"), max4, raw2(0x21, 0x11, body4), "\x00", "\xff\xff\xff\xff"}

// A header is read whole or not at all, whatever piece has come with it, and neither
// the piece nor what is done with it later has a part in it.
func TestEverySplit(t *testing.T) {
	for name, c := range good {
		for _, payload := range fused {
			all := []byte(c.raw + payload)
			for cut := range len(all) + 1 {
				piece := bytes.Clone(all[:cut])
				h, n, err := Parse(piece)
				clear(piece)
				want, wantN := c.want, len(c.raw)
				if cut < len(c.raw) {
					want, wantN = Header{}, 0
				}
				if err != nil || n != wantN || !same(h, want) {
					t.Fatalf("%s, %d bytes of %d and %q: %+v, %d, %v", name, cut, len(c.raw), payload, h, n, err)
				}
			}
		}
	}
}

// What is parsed is written so that it is parsed as the same again, and a canonical
// header is written as it was.
func TestAppendIsReadBack(t *testing.T) {
	for name, c := range good {
		b, err := c.want.Append([]byte("before"))
		if err != nil || !bytes.HasPrefix(b, []byte("before")) {
			t.Errorf("%s: %q, %v", name, b, err)
			continue
		}
		b = b[len("before"):]
		if h, n, err := Parse(b); err != nil || n != len(b) || !same(h, c.want) {
			t.Errorf("%s: %+v, %d of %d, %v", name, h, n, len(b), err)
		}
	}
	for _, name := range []string{"v1, the specification's example", "v1, longest v4", "v1, longest v6", "v1, unknown, short", "v1, a mapped address",
		"v2, TCP4", "v2, UDP6", "v2, a mapped address", "v2, Unix", "v2, Unix, unnamed", "v2, TLVs", "v2, checksum", "v2, longest", "v2, local", "v2, local, checksum"} {
		if b, err := good[name].want.Append(nil); string(b) != good[name].raw {
			t.Errorf("%s: %q, %v, want %q", name, b, err, good[name].raw)
		}
	}
}

// wrong are inputs and the number of bytes that give them away. So fail early, and yet
// not for what may become good.
var wrong = map[string]struct {
	raw   string
	tells int
}{
	"payload":            {"GET / HTTP/1.1\r\n\r\n", 1},
	"TLS":                {"\x16\x03\x01\x02\x00\x01", 1},
	"small letters":      {"proxy TCP4", 1},
	"v1, POST":           {"POST / HTTP/1.1\r\n", 2},
	"v1, PROXYTCP4":      {"PROXYTCP4 1.1.1.1 1.1.1.1 1 1\r\n", 6},
	"v1, a tab":          {"PROXY\tTCP4", 6},
	"v1, two spaces":     {"PROXY  TCP4", 7},
	"v1, TCP5":           {"PROXY TCP5 1.1.1.1 1.1.1.1 1 1\r\n", 10},
	"v1, UDP4":           {"PROXY UDP4 1.1.1.1 1.1.1.1 1 1\r\n", 8},
	"v1, TCP":            {"PROXY TCP 1.1.1.1", 10},
	"v1, TCP44":          {"PROXY TCP44", 11},
	"v1, unknown":        {"PROXY unknown\r\n", 7},
	"v1, UNKNOWNS":       {"PROXY UNKNOWNS\r\n", 14},
	"v1, UNKNOW":         {"PROXY UNKNOW\r\n", 13},
	"v1, nothing":        {"PROXY \r\n", 7},
	"v1, TCP4 alone":     {"PROXY TCP4\r\n", 11},
	"v1, second spaces":  {"PROXY TCP4  1.1.1.1", 12},
	"v1, a letter":       {"PROXY TCP4 a", 12},
	"v1, 256":            {"PROXY TCP4 1.1.1.256 ", 21},
	"v1, leading zero":   {"PROXY TCP4 1.1.1.01 ", 20},
	"v1, short address":  {"PROXY TCP4 1.1.1 ", 17},
	"v1, a v6 as a v4":   {"PROXY TCP4 ::1 ::1 1 1\r\n", 12},
	"v1, a v4 as a v6":   {"PROXY TCP6 1.1.1.1 1.1.1.1 1 1\r\n", 19},
	"v1, a zone":         {"PROXY TCP6 fe80::1%eth0 ::1 1 1\r\n", 19},
	"v1, a mask":         {"PROXY TCP4 1.1.1.1/8", 19},
	"v1, port 65536":     {"PROXY TCP4 1.1.1.1 2.2.2.2 65536 1\r\n", 32},
	"v1, port 01":        {"PROXY TCP4 1.1.1.1 2.2.2.2 01 1\r\n", 29},
	"v1, port +1":        {"PROXY TCP4 1.1.1.1 2.2.2.2 +1 1\r\n", 28},
	"v1, port -1":        {"PROXY TCP4 1.1.1.1 2.2.2.2 -1 1\r\n", 28},
	"v1, port 1_0":       {"PROXY TCP4 1.1.1.1 2.2.2.2 1_0 1\r\n", 29},
	"v1, no port":        {"PROXY TCP4 1.1.1.1 2.2.2.2\r\n", 27},
	"v1, one port":       {"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n", 29},
	"v1, empty port":     {"PROXY TCP4 1.1.1.1 2.2.2.2 1 \r\n", 30},
	"v1, third port":     {"PROXY TCP4 1.1.1.1 2.2.2.2 1 1 1\r\n", 31},
	"v1, last space":     {"PROXY TCP4 1.1.1.1 2.2.2.2 1 1 \r\n", 31},
	"v1, LF":             {"PROXY TCP4 1.1.1.1 2.2.2.2 1 1\n", 31},
	"v1, CR":             {"PROXY TCP4 1.1.1.1 2.2.2.2 1 1\rGET", 32},
	"v1, NUL":            {"PROXY TCP4 1.1.1.1 2.2.2.2 1 1\x00\r\n", 31},
	"v1, unknown, LF":    {"PROXY UNKNOWN\nGET / HTTP/1.1\r\n", 14},
	"v1, unknown, a CR":  {"PROXY UNKNOWN \r \r\n", 16},
	"v1, unknown, long":  {"PROXY UNKNOWN" + strings.Repeat(" ", 93) + "\r\n", 106},
	"v1, endless":        {"PROXY UNKNOWN " + strings.Repeat("x", 500), 106},
	"v1, endless digits": {"PROXY TCP4 " + strings.Repeat("1", 500), 106},

	"v2, almost":            {"\r\n\r\n\x00\r\nQUIT\r\n", 12},
	"v2, empty lines":       {"\r\n\r\nGET", 5},
	"v2, version 1":         {raw2(0x11, 0x11, body4), 13},
	"v2, version 3":         {raw2(0x31, 0x11, body4), 13},
	"v2, command 2":         {raw2(0x22, 0x11, body4), 13},
	"v2, command 15":        {raw2(0x2f, 0x11, body4), 13},
	"v2, family 4":          {raw2(0x21, 0x41, body4), 14},
	"v2, family 15":         {raw2(0x21, 0xf1, body4), 14},
	"v2, transport 3":       {raw2(0x21, 0x13, body4), 14},
	"v2, unspec and 3":      {raw2(0x21, 0x03, body4), 14},
	"v2, too long":          {raw2(0x21, 0x11, body4, strings.Repeat("\x00", MaxV2)), 15},
	"v2, a byte too long":   {raw2(0x21, 0x11, body4, strings.Repeat("x", MaxV2-fixedLen-12+1)), 16},
	"v2, local, too long":   {raw2(0x20, 0x00, strings.Repeat("\x00", MaxV2)), 15},
	"v2, no addresses":      {raw2(0x21, 0x11), 16},
	"v2, short v4":          {raw2(0x21, 0x11, body4[1:]), 16},
	"v2, v4 as v6":          {raw2(0x21, 0x21, body4), 16},
	"v2, short path":        {raw2(0x21, 0x31, path("/a"), path("/b")[1:]), 16},
	"v2, TLV overrun":       {raw2(0x21, 0x11, body4, overrun), 16 + 12 + 7},
	"v2, TLV overrun by 1":  {raw2(0x21, 0x11, body4, rawTLV(2, "abc")[:5]), 16 + 12 + 5},
	"v2, TLV left over":     {raw2(0x21, 0x11, body4, rawTLV(2, "x"), leftover), 16 + 12 + 4 + 2},
	"v2, checksum wrong":    {raw2(0x21, 0x11, body4, rawTLV(3, "\x00\x00\x00\x00")), 16 + 12 + 7},
	"v2, local, and wrong":  {raw2(0x20, 0x00, rawTLV(3, "\x00\x00\x00\x00")), 16 + 7},
	"v2, checksum short":    {raw2(0x21, 0x11, body4, rawTLV(3, "\x00\x00\x00")), 16 + 12 + 6},
	"v2, checksum of 8":     {raw2(0x21, 0x11, body4, rawTLV(3, strings.Repeat("\x00", 8))), 16 + 12 + 11},
	"v2, checksum, another": {rawSum(0x21, 0x11, body4, rawTLV(3, "\x00\x00\x00\x00")), 16 + 12 + 14},
}

func TestWrongHeaders(t *testing.T) {
	for name, c := range wrong {
		for cut := range len(c.raw) + 1 {
			h, n, err := Parse([]byte(c.raw[:cut]))
			if n != 0 || !same(h, Header{}) || (err != nil) != (cut >= c.tells) {
				t.Errorf("%s, the first %d of %d bytes: %+v, %d, %v", name, cut, len(c.raw), h, n, err)
				break
			}
			if err != nil && (!errors.Is(err, ErrMalformed) || len(err.Error()) > 600 || strings.ContainsAny(err.Error(), "\x00\r\n\t\x1b")) {
				t.Errorf("%s: %q", name, err)
			}
		}
	}
}

// Every bit of the addresses, the TLV and the checksum counts. (What says that there is a
// checksum cannot be covered by it.)
func TestChecksumCoversAll(t *testing.T) {
	raw := good["v2, checksum"].raw
	tlv, sum := fixedLen+len(body4), len(raw)-sumLen
	for at := range len(raw) {
		if at < fixedLen || at > tlv && at < tlv+tlvHead || at >= sum-tlvHead && at < sum {
			continue
		}
		for bit := range 8 {
			b := []byte(raw)
			b[at] ^= 1 << bit
			if h, n, err := Parse(b); !errors.Is(err, ErrMalformed) {
				t.Errorf("bit %d of byte %d: %+v, %d, %v", bit, at, h, n, err)
			}
		}
	}
}

func TestHeadersThatCannotBeWritten(t *testing.T) {
	v4, v6 := netip.MustParseAddrPort("1.1.1.1:1"), netip.MustParseAddrPort("[::1]:1")
	long := []TLV{{0xe0, make([]byte, MaxV2)}}
	for name, h := range map[string]Header{
		"version 0":           {Source: v4, Destination: v4},
		"version 3":           {Version: 3, Source: v4, Destination: v4},
		"v1, no addresses":    {Version: 1},
		"v1, no destination":  {Version: 1, Source: v4},
		"v1, datagrams":       {Version: 1, Source: v4, Destination: v4, Datagram: true},
		"v1, Unix":            {Version: 1, SourcePath: "/a"},
		"v1, TLVs":            {Version: 1, Source: v4, Destination: v4, TLVs: []TLV{{1, nil}}},
		"v1, local TLVs":      {Version: 1, Local: true, TLVs: []TLV{{1, nil}}},
		"v2, no source":       {Version: 2, Destination: v6},
		"v2, no destination":  {Version: 2, Source: v6},
		"v2, both kinds":      {Version: 2, Source: v6, Destination: v6, DestinationPath: "/a"},
		"v2, long path":       {Version: 2, SourcePath: strings.Repeat("x", 109)},
		"v2, NUL in a path":   {Version: 2, SourcePath: "a\x00b"},
		"v2, too long":        {Version: 2, Source: v4, Destination: v4, TLVs: long},
		"v2, local, too long": {Version: 2, Local: true, TLVs: long},
		"v2, wraps":           {Version: 2, Local: true, TLVs: []TLV{{1, make([]byte, 1<<16)}}},
		"v2, two checksums":   {Version: 2, Local: true, TLVs: []TLV{{3, nil}, {3, nil}}},
	} {
		dst := make([]byte, 3, MaxV2)
		if b, err := h.Append(dst); err == nil || len(b) != 3 || errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

// What a proxy has at hand is written as what the other side can use.
func TestWrittenForms(t *testing.T) {
	for name, c := range map[string]struct{ h, want Header }{
		"mapped":        {from(1, "[::ffff:1.1.1.1]:1", "2.2.2.2:2"), from(1, "1.1.1.1:1", "2.2.2.2:2")},
		"two families":  {from(2, "1.1.1.1:1", "[::1]:2"), from(2, "1.1.1.1:1", "[::1]:2")},
		"a zone":        {from(1, "[fe80::1%eth0]:1", "[fe80::2%eth0]:2"), from(1, "[fe80::1]:1", "[fe80::2]:2")},
		"local":         {from(2, "1.1.1.1:1", "[::1]:2", func(h *Header) { h.Local = true }), Header{Version: 2, Local: true}},
		"local, v1":     {Header{Version: 1, Local: true, SourcePath: "/a"}, Header{Version: 1, Local: true}},
		"net's no name": {Header{Version: 2, SourcePath: "@", DestinationPath: "/a"}, Header{Version: 2, DestinationPath: "/a"}},
		"old checksum":  {from(2, "1.1.1.1:1", "2.2.2.2:2", tlvs(TLV{3, []byte("old!")})), from(2, "1.1.1.1:1", "2.2.2.2:2", tlvs(TLV{3, nil}))},
	} {
		b, err := c.h.Append(nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if h, n, err := Parse(b); err != nil || n != len(b) || !same(h, c.want) {
			t.Errorf("%s: %+v, %d of %d, %v", name, h, n, len(b), err)
		}
	}
}

// Whoever sends slowly is not worth an allocation for each byte of a header.
func TestWaitingIsFree(t *testing.T) {
	for _, raw := range []string{"PRO", good["v2, longest"].raw[:2000]} {
		b := []byte(raw)
		if n := testing.AllocsPerRun(100, func() { Parse(b) }); n > 0 {
			t.Errorf("%d bytes: %v allocations", len(b), n)
		}
	}
}

// FuzzParse holds the guarantees to any input: it ends without a panic, an answer does
// not change with more bytes, what waits has waited before, nothing is read behind the
// header, and what was read can be written and read again.
func FuzzParse(f *testing.F) {
	for _, c := range good {
		f.Add([]byte(c.raw), []byte("payload"))
	}
	for _, c := range wrong {
		f.Add([]byte(c.raw), []byte("\r\n"))
	}
	f.Fuzz(func(t *testing.T, b, more []byte) {
		h, n, err := Parse(b)
		if err != nil && (!errors.Is(err, ErrMalformed) || n != 0) || n < 0 || n > len(b) || n > MaxV2 {
			t.Fatalf("%d, %v", n, err)
		}
		if n == 0 && err == nil && len(b) >= MaxV2 {
			t.Fatalf("%d bytes and still waiting", len(b))
		}
		if n > 0 || err != nil {
			h2, n2, err2 := Parse(slices.Concat(b, more))
			if n2 != n || !same(h, h2) || (err == nil) != (err2 == nil) {
				t.Fatalf("with more bytes %+v, %d, %v became %+v, %d, %v", h, n, err, h2, n2, err2)
			}
		}
		for i := range b { // waiting, until the answer comes
			if _, n2, err2 := Parse(b[:i]); n2 > 0 || err2 != nil {
				if n2 != n || (err == nil) != (err2 == nil) || n2 > i {
					t.Fatalf("the first %d bytes: %d, %v; all: %d, %v", i, n2, err2, n, err)
				}
				break
			}
		}
		if n == 0 {
			return
		}
		again, err := h.Append(nil)
		if err != nil {
			t.Fatalf("%+v: %v", h, err)
		}
		if h2, n2, err := Parse(append(again, more...)); err != nil || n2 != len(again) || !same(h, h2) {
			t.Fatalf("%+v was written as %q and read as %+v, %d, %v", h, again, h2, n2, err)
		}
	})
}

// FuzzAppend holds that what can be written is read back.
func FuzzAppend(f *testing.F) {
	f.Add(1, []byte{1, 1, 1, 1}, []byte{2, 2, 2, 2}, uint16(1), uint16(2), "", "", byte(0), []byte(nil))
	f.Add(2, []byte(src6), []byte(mapped6), uint16(1), uint16(2), "", "", byte(2), []byte("x"))
	f.Add(2, []byte{}, []byte{}, uint16(0), uint16(0), "/run/a", "@b", byte(3), []byte("x"))
	f.Fuzz(func(t *testing.T, version int, src, dst []byte, from, to uint16, srcPath, dstPath string, flags byte, value []byte) {
		h := Header{Version: version, SourcePath: srcPath, DestinationPath: dstPath, Datagram: flags&1 != 0}
		if a, ok := netip.AddrFromSlice(src); ok {
			h.Source = netip.AddrPortFrom(a.Unmap(), from)
		}
		if a, ok := netip.AddrFromSlice(dst); ok {
			h.Destination = netip.AddrPortFrom(a.Unmap(), to)
		}
		if flags&2 != 0 {
			h.TLVs = []TLV{{flags, value}, {TypeCRC32C, nil}}
		}
		b, err := h.Append(nil)
		if err != nil || srcPath == "@" || dstPath == "@" {
			return
		}
		if h2, n, err := Parse(b); err != nil || n != len(b) || !same(h, h2) {
			t.Fatalf("%+v was written as %q and read as %+v, %d, %v", h, b, h2, n, err)
		}
	})
}
