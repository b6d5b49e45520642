package proxyproto

import (
	"bytes"
	"errors"
	"net/netip"
	"strconv"
	"strings"
)

// parse1 reads "PROXY TCP4 source destination port port CR LF". Fields are checked as
// they end, before the line does: a peer that talks nonsense need not finish it.
func parse1(b []byte) (h Header, n int, err error) {
	if ok, err := begins(b, signature1); !ok {
		return h, 0, err
	}
	line, closed, n, err := cutLine(b)
	if err != nil {
		return h, 0, err
	}
	fields := strings.Split(string(line[len(signature1):]), " ")
	ended := func(i int) bool { return closed || i < len(fields)-1 }
	if err := checkProtocol(fields[0], ended(0)); err != nil {
		return h, 0, err
	}
	h = Header{Version: 1, Local: fields[0] == "UNKNOWN"}
	if h.Local {
		return h, n, nil // the rest of the line is to be ignored
	}
	if closed && len(fields) != 5 || len(fields) > 5 {
		return h, 0, malformed("%.*q has %d fields, want 6", MaxV1, line, len(fields)+1)
	}
	var addrs [2]netip.Addr
	var ports [2]uint16
	for i, field := range fields[1:] {
		if i < 2 {
			addrs[i], err = parseAddr(field, fields[0] == "TCP4", ended(i+1))
		} else {
			ports[i-2], err = parsePort(field, ended(i+1))
		}
		if err != nil {
			return h, 0, err
		}
	}
	h.Source, h.Destination = netip.AddrPortFrom(addrs[0], ports[0]), netip.AddrPortFrom(addrs[1], ports[1])
	return h, n, nil
}

// cutLine returns the line without its end, or what there is of it. It is closed when it
// has its CR; n is the length with CR LF, 0 as long as they are not both here. A CR or
// an LF alone is refused also where the line is to be ignored: others may see its end in
// it, and the rest as a request.
func cutLine(b []byte) (line []byte, closed bool, n int, err error) {
	const longest = MaxV1 - len("\r\n")
	end := bytes.IndexAny(b[:min(len(b), longest+1)], "\r\n")
	switch {
	case end < 0 && len(b) > longest:
		return nil, false, 0, malformed("a line of more than %d bytes", MaxV1)
	case end < 0:
		return b, false, 0, nil
	case b[end] == '\n':
		return nil, false, 0, malformed("an LF without its CR")
	case end+1 == len(b):
		return b[:end], true, 0, nil
	case b[end+1] != '\n':
		return nil, false, 0, malformed("a CR without its LF")
	}
	return b[:end], true, end + 2, nil
}

func checkProtocol(field string, ended bool) error {
	for _, name := range []string{"TCP4", "TCP6", "UNKNOWN"} {
		if field == name || !ended && strings.HasPrefix(name, field) {
			return nil
		}
	}
	return malformed("protocol %.*q", MaxV1, field)
}

// parseAddr returns the address when the field has ended.
func parseAddr(field string, v4, ended bool) (a netip.Addr, err error) {
	letters := "0123456789abcdefABCDEF:." // so a zone is none of them
	if v4 {
		letters = "0123456789."
	}
	ok := strings.Trim(field, letters) == ""
	if ok && ended {
		a, err = netip.ParseAddr(field)
		ok = err == nil && a.Is4() == v4
	}
	if !ok {
		return netip.Addr{}, malformed("address %.*q", MaxV1, field)
	}
	return a.Unmap(), nil
}

// parsePort takes a field that has not ended for a port: whatever begins a port is one.
func parsePort(field string, ended bool) (uint16, error) {
	if field == "" && !ended {
		return 0, nil
	}
	port, err := strconv.ParseUint(field, 10, 16)
	if err != nil || strconv.FormatUint(port, 10) != field {
		return 0, malformed("port %.*q", MaxV1, field)
	}
	return uint16(port), nil
}

func (h Header) append1(b []byte) ([]byte, error) {
	switch {
	case len(h.TLVs) > 0:
		return nil, errors.New("PROXY version 1 has no TLVs")
	case h.Local:
		return append(b, "PROXY UNKNOWN\r\n"...), nil
	case h.Datagram || h.SourcePath != "" || h.DestinationPath != "":
		return nil, errors.New("PROXY version 1 has no datagrams and no Unix sockets")
	}
	src, dst, err := h.addresses()
	if err != nil {
		return nil, err
	}
	family := "TCP6 "
	if src.Addr().Is4() {
		family = "TCP4 "
	}
	b = append(append(b, signature1...), family...)
	b = append(src.Addr().AppendTo(b), ' ')
	b = append(dst.Addr().AppendTo(b), ' ')
	b = append(strconv.AppendUint(b, uint64(src.Port()), 10), ' ')
	b = strconv.AppendUint(b, uint64(dst.Port()), 10)
	return append(b, "\r\n"...), nil
}
