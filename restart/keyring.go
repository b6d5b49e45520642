//go:build unix

package restart

import (
	"crypto/rand"
	"slices"
	"time"
)

// Ticket keys live as long as crypto/tls lets its own live: a new one seals tickets
// each day, and a ticket is accepted for a week.
const (
	keyLife  = 24 * time.Hour
	keyCount = 8
)

// keyring is the master keys of TLS tickets, newest first. They are only ever in
// memory and on the link.
type keyring struct{ keys [][32]byte }

func newKeyring() (*keyring, error) {
	k := &keyring{}
	return k, k.rotate()
}

func (k *keyring) rotate() error {
	var fresh [32]byte
	if _, err := rand.Read(fresh[:]); err != nil {
		return err
	}
	k.keys = slices.Insert(slices.Clone(k.keys), 0, fresh)
	k.keys = k.keys[:min(len(k.keys), keyCount)]
	return nil
}
