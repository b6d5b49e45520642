package certs

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"time"
)

const (
	ticketRotation = 24 * time.Hour
	ticketKeys     = 7 // with the rotation a week, the most that TLS 1.3 and crypto/tls let a ticket live
)

// TicketKeys derives the session ticket keys of a scope (HKDF-SHA-256, RFC 5869), in the
// order of the master keys: the first encrypts, all of them decrypt. Keys of one scope
// tell nothing of another's, and do not open its tickets. A ticket carries the outcome
// of the handshake that it was given for, the client's certificate above all, so a scope
// must be of one server and of one policy for its clients: a ticket that opens elsewhere
// lets its holder in past what is asked for there (CVE-2025-23419).
func TicketKeys(master [][32]byte, scope string) [][32]byte {
	var keys [][32]byte
	for _, secret := range master {
		key, err := hkdf.Key(sha256.New, secret[:], nil, "holdfast session tickets: "+scope, len(secret))
		if err != nil {
			panic(err) // of a length that HKDF cannot do
		}
		keys = append(keys, [32]byte(key))
	}
	return keys
}

// RotateTickets returns the master keys of the next day: a new one in front, and the
// oldest given up after a week.
func RotateTickets(master [][32]byte) [][32]byte {
	next := make([][32]byte, 1, ticketKeys)
	rand.Read(next[0][:])
	return append(next, master[:min(len(master), ticketKeys-1)]...)
}
