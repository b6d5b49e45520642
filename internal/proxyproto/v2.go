package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strings"
)

// The fixed part: the signature, version and command, family and transport, length of
// the rest.
const (
	commandAt = 12
	familyAt  = 13
	lengthAt  = 14
	fixedLen  = 16
)

const (
	commandLocal = 0x20 // with the version in the upper half
	commandProxy = 0x21

	familyInet  = 0x10 // with the transport in the lower half
	familyInet6 = 0x20
	familyUnix  = 0x30

	transportStream = 0x01
	transportDgram  = 0x02
)

const (
	pathLen = 108 // of sun_path on Linux
	tlvHead = 3   // type and length
	sumLen  = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func parse2(b []byte) (h Header, n int, err error) {
	if ok, err := begins(b, signature2); !ok {
		return h, 0, err
	}
	n, err = fixed(b)
	if err != nil || n == 0 || len(b) < n {
		return h, 0, err
	}
	b = b[:n] // what follows is payload, and not ours to read
	h = Header{Version: 2, Local: isLocal(b)}
	if h.Local {
		h.TLVs, err = skipLocal(b)
		return h, n, err
	}
	h.readAddresses(b)
	h.TLVs, err = readTLVs(b)
	return h, n, err
}

// fixed returns the length of the whole header, 0 as long as it is not known.
func fixed(b []byte) (n int, err error) {
	if len(b) > commandAt && b[commandAt] != commandLocal && b[commandAt] != commandProxy {
		return 0, malformed("version and command %#02x", b[commandAt])
	}
	// The family of a LOCAL header is to be ignored.
	if len(b) > familyAt && b[commandAt] == commandProxy && (b[familyAt] > familyUnix|0x0f || b[familyAt]&0x0f > transportDgram) {
		return 0, malformed("family and transport %#02x", b[familyAt])
	}
	if len(b) > lengthAt {
		n = fixedLen + int(b[lengthAt])<<8
	}
	if len(b) > lengthAt+1 {
		n += int(b[lengthAt+1])
	}
	if n > MaxV2 {
		return 0, malformed("more than %d bytes", MaxV2)
	}
	if len(b) < fixedLen {
		return 0, nil
	}
	if want := fixedLen + addressesLen(b[familyAt]); !isLocal(b) && n < want {
		return 0, malformed("%d bytes are too few for family and transport %#02x", n, b[familyAt])
	}
	return n, nil
}

// isLocal reports whether there is nothing in the header to take an address from.
func isLocal(b []byte) bool {
	return b[commandAt] == commandLocal || b[familyAt]&0xf0 == 0 || b[familyAt]&0x0f == 0
}

// addressesLen is the length of both addresses with their ports.
func addressesLen(family byte) int {
	switch family & 0xf0 {
	case familyInet:
		return 2 * (4 + 2)
	case familyInet6:
		return 2 * (16 + 2)
	case familyUnix:
		return 2 * pathLen
	}
	return 0
}

// skipLocal returns what TLVs there are. HAProxy sends them with its health checks; others
// send something of which only the length is known to be right.
func skipLocal(b []byte) ([]TLV, error) {
	tlvs, err := readTLVs(b)
	if errors.Is(err, errNoTLVs) {
		return nil, nil
	}
	return tlvs, err
}

// readAddresses wants as many bytes as fixed has made sure of.
func (h *Header) readAddresses(b []byte) {
	h.Datagram = b[familyAt]&0x0f == transportDgram
	rest := b[fixedLen:]
	if b[familyAt]&0xf0 == familyUnix {
		h.SourcePath, h.DestinationPath = parsePath(rest[:pathLen]), parsePath(rest[pathLen:2*pathLen])
		return
	}
	size := (addressesLen(b[familyAt]) - 4) / 2
	src, _ := netip.AddrFromSlice(rest[:size])
	dst, _ := netip.AddrFromSlice(rest[size : 2*size])
	ports := rest[2*size:]
	h.Source = netip.AddrPortFrom(src.Unmap(), binary.BigEndian.Uint16(ports))
	h.Destination = netip.AddrPortFrom(dst.Unmap(), binary.BigEndian.Uint16(ports[2:]))
}

// parsePath ends an abstract name at its first NUL, like any other, as package net does.
// A socket without a name has only NULs.
func parsePath(b []byte) string {
	abstract := b[0] == 0
	if abstract {
		b = b[1:]
	}
	name, _, _ := bytes.Cut(b, []byte{0})
	if abstract && len(name) > 0 {
		return "@" + string(name)
	}
	return string(name)
}

// errNoTLVs means that what follows the addresses is something else.
var errNoTLVs = errors.New("no TLVs")

// readTLVs returns a copy of the TLVs, with their checksum verified. One that reaches
// beyond the header is an error: there it is payload.
func readTLVs(b []byte) (tlvs []TLV, err error) {
	start := fixedLen + addressesLen(b[familyAt])
	if len(b) < start {
		return nil, malformed("%w: the addresses are cut short", errNoTLVs)
	}
	for rest := bytes.Clone(b[start:]); len(rest) > 0; {
		if len(rest) < tlvHead {
			return nil, malformed("%w: %d bytes are left over", errNoTLVs, len(rest))
		}
		end := tlvHead + int(binary.BigEndian.Uint16(rest[1:]))
		if end > len(rest) {
			return nil, malformed("%w: %#02x has %d bytes of %d", errNoTLVs, rest[0], len(rest), end)
		}
		tlvs = append(tlvs, TLV{Type: rest[0], Value: rest[tlvHead:end:end]})
		rest = rest[end:]
	}
	return tlvs, checkSum(b, start)
}

// checkSum verifies the checksum of a header whose TLVs begin at i, if it has one.
func checkSum(b []byte, i int) error {
	at, err := sumAt(b, i)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if at > 0 && binary.BigEndian.Uint32(b[at:]) != sum(b, at) {
		return malformed("the checksum is wrong")
	}
	return nil
}

// sumAt returns where the checksum stands in a header whose TLVs, known to be whole,
// begin at i; 0 if there is none. Of two, neither could be right.
func sumAt(b []byte, i int) (at int, err error) {
	for i < len(b) {
		size := int(binary.BigEndian.Uint16(b[i+1:]))
		if b[i] == TypeCRC32C {
			if size != sumLen || at > 0 {
				return 0, errors.New("want one checksum, of 4 bytes")
			}
			at = i + tlvHead
		}
		i += tlvHead + size
	}
	return at, nil
}

// sum is the checksum of a header as if there were zeros where it stands.
func sum(b []byte, at int) uint32 {
	crc := crc32.Update(0, castagnoli, b[:at])
	crc = crc32.Update(crc, castagnoli, make([]byte, sumLen))
	return crc32.Update(crc, castagnoli, b[at+sumLen:])
}

func (h Header) append2(b []byte) (_ []byte, err error) {
	start := len(b)
	b = append(append(b, signature2...), commandLocal, 0, 0, 0)
	if !h.Local {
		var family byte
		if family, b, err = h.appendAddresses(b); err != nil {
			return nil, err
		}
		b[start+commandAt], b[start+familyAt] = commandProxy, family
	}
	tlvs := len(b)
	if b, err = h.appendTLVs(b, MaxV2-(tlvs-start)); err != nil {
		return nil, err
	}
	header := b[start:]
	binary.BigEndian.PutUint16(header[lengthAt:], uint16(len(header)-fixedLen))
	at, err := sumAt(header, tlvs-start)
	if at > 0 {
		binary.BigEndian.PutUint32(header[at:], sum(header, at)) // last: the length is part of it
	}
	return b, err
}

func (h Header) appendAddresses(b []byte) (family byte, _ []byte, err error) {
	transport := byte(transportStream)
	if h.Datagram {
		transport = transportDgram
	}
	if !h.Source.IsValid() && !h.Destination.IsValid() {
		b, err = appendPaths(b, h.SourcePath, h.DestinationPath)
		return familyUnix | transport, b, err
	}
	if h.SourcePath != "" || h.DestinationPath != "" {
		return 0, nil, errors.New("PROXY header: it has both addresses and paths")
	}
	src, dst, err := h.addresses()
	if err != nil {
		return 0, nil, err
	}
	family = familyInet6
	if src.Addr().Is4() {
		family = familyInet
	}
	b = append(append(b, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	return family | transport, binary.BigEndian.AppendUint16(b, dst.Port()), nil
}

// appendPaths takes "@" for no name: it is what package net calls such a peer.
func appendPaths(b []byte, paths ...string) ([]byte, error) {
	for _, path := range paths {
		if len(path) > pathLen || strings.Contains(path, "\x00") {
			return nil, fmt.Errorf("PROXY header: path %.*q is too long, or has a NUL", pathLen, path)
		}
		var field [pathLen]byte
		copy(field[:], path)
		if field[0] == '@' {
			field[0] = 0
		}
		b = append(b, field[:]...)
	}
	return b, nil
}

// appendTLVs leaves the checksum to be filled in.
func (h Header) appendTLVs(b []byte, room int) ([]byte, error) {
	for _, tlv := range h.TLVs {
		value := tlv.Value
		if tlv.Type == TypeCRC32C {
			value = make([]byte, sumLen)
		}
		if room -= tlvHead + len(value); room < 0 {
			return nil, fmt.Errorf("PROXY header: its TLVs make it longer than %d bytes", MaxV2)
		}
		b = binary.BigEndian.AppendUint16(append(b, tlv.Type), uint16(len(value)))
		b = append(b, value...)
	}
	return b, nil
}
