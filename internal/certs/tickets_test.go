package certs

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestTicketKeys(t *testing.T) {
	master := [][32]byte{{1}, {2}}
	keys := TicketKeys(master, "a")
	if len(keys) != 2 || !slices.Equal(keys, TicketKeys(master, "a")) || !slices.Equal(keys[1:], TicketKeys(master[1:], "a")) {
		t.Errorf("%x", keys)
	}
	seen := map[[32]byte]bool{master[0]: true, master[1]: true}
	for _, scope := range []string{"a", "b", "", "a ", "aa"} {
		for _, key := range TicketKeys(master, scope) {
			if seen[key] {
				t.Errorf("scope %q has a key of another", scope)
			}
			seen[key] = true
		}
	}
	// A successor of another version must derive the same.
	if got := hex.EncodeToString(keys[0][:]); got != "565835baf0836781102900cb9a4cf372fff019e52ca3247fe0da4d8d0b77e56c" {
		t.Errorf("the derivation has changed: %s", got)
	}
	if TicketKeys(nil, "a") != nil {
		t.Error("keys from nothing")
	}
}

func TestRotateTickets(t *testing.T) {
	var master [][32]byte
	for day := range 10 {
		next := RotateTickets(master)
		if len(next) != min(day+1, ticketKeys) || !slices.Equal(next[1:], master[:len(next)-1]) || slices.Contains(master, next[0]) {
			t.Fatalf("day %d: %d keys of %d", day, len(next), len(master))
		}
		master = next
	}
}

// A session passes from a server to its successor, which knows the first by nothing but
// the master keys, and to nobody else: not to one that asks for more of its clients, or
// for something else (incident I22).
func TestSessionsStayWithinTheirPolicy(t *testing.T) {
	root, other := newRoot(t, "root"), newRoot(t, "other")
	master := RotateTickets(nil)
	both := func(f *ServerFiles) { f.ClientCA = root.pem() + other.pem() }
	open := func(f *ServerFiles) { f.ClientCA = "" }
	newer := func(f *ServerFiles) { f.MinVersion = tls.VersionTLS11 }
	config := func(cfg *tls.Config) func(*ServerFiles) { return func(f *ServerFiles) { f.Config = cfg } }
	own := &tls.Config{VerifyConnection: func(tls.ConnectionState) error { return nil }}
	for name, c := range map[string]struct {
		first, second []func(*ServerFiles)
		listener      string
		master        [][32]byte
		want          bool
	}{
		"successor":            {nil, nil, "public", master, true},
		"a day later":          {nil, nil, "public", RotateTickets(master), true},
		"without clients' CA":  {list(open), list(open), "public", master, true},
		"names in other order": {list(admitting("db.test", "x.test")), list(admitting("X.test", "db.test")), "public", master, true},
		"another listener":     {nil, nil, "admin", master, false},
		"another master":       {nil, nil, "public", RotateTickets(nil), false},
		"no master":            {nil, nil, "public", nil, false},
		"more authorities":     {nil, list(both), "public", master, false},
		"fewer authorities":    {list(both), nil, "public", master, false},
		"clients are asked":    {list(open), nil, "public", master, false},
		"names are asked":      {nil, list(admitting("db.test")), "public", master, false},
		"other names":          {list(admitting("db.test", "x.test")), list(admitting("db.test")), "public", master, false},
		"other versions":       {nil, list(newer), "public", master, false},
		"checks of their own":  {list(config(own)), list(config(own)), "public", master, false},
		"no more tickets":      {nil, list(config(&tls.Config{SessionTicketsDisabled: true})), "public", master, false},
	} {
		for _, version := range versions {
			client := speaking(root.caller(root.issue()), version)
			first, err1 := root.texts(c.first...).Server("public")
			second, err2 := root.texts(c.second...).Server(c.listener)
			if err1 != nil || err2 != nil {
				t.Fatal(err1, err2)
			}
			first.SetTickets(master)
			second.SetTickets(c.master)
			mustVisit(t, first.Config(), client)
			if resumed, _ := mustVisit(t, second.Config(), client); resumed != c.want {
				t.Errorf("%s, version %x: resumed %v", name, version, resumed)
			}
			if name == "no more tickets" {
				continue
			}
			if resumed, _ := mustVisit(t, second.Config(), client); !resumed {
				t.Errorf("%s, version %x: the second does not resume its own", name, version)
			}
		}
	}
}

func list(changes ...func(*ServerFiles)) []func(*ServerFiles) { return changes }

// Even with the very same keys, so that the session is resumed, its client is not admitted
// once the list says no.
func TestNamesAreCheckedOnResumption(t *testing.T) {
	root := newRoot(t, "root")
	before := server(t, root.texts(admitting("db.test")))
	after := server(t, root.texts(admitting("other.test")))
	shared := RotateTickets(nil)
	for _, version := range versions {
		client := speaking(root.caller(root.issue()), version)
		cfg := before.current().cfg.Clone()
		cfg.SetSessionTicketKeys(shared)
		mustVisit(t, cfg, client)
		if resumed, _ := mustVisit(t, cfg, client); !resumed {
			t.Fatalf("version %x: no session", version)
		}
		cfg = after.current().cfg.Clone()
		cfg.SetSessionTicketKeys(shared)
		resumed, verify := false, cfg.VerifyConnection
		cfg.VerifyConnection = func(cs tls.ConnectionState) error {
			resumed = cs.DidResume
			return verify(cs)
		}
		var refused error
		if _, _, err := visitAnd(t, cfg, For(client, "db.test"), &refused); err == nil || !resumed || !is[*NameError](refused) {
			t.Errorf("version %x: resumed %v, %v, %v", version, resumed, err, refused)
		}
		// And as it is used, with keys of its own, it does not get that far.
		after.SetTickets(shared)
		if _, _, err := visitAnd(t, after.Config(), For(client, "db.test"), &refused); err == nil || !is[*NameError](refused) {
			t.Errorf("version %x: %v, %v", version, err, refused)
		}
	}
}

// A renewed pair keeps the sessions; a changed authority ends them, and refuses those of
// whom it knows nothing.
func TestSessionsAcrossReloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, root, other := newFolder(t), newRoot(t, "root"), newRoot(t, "other")
		for _, version := range versions {
			cert, key := f.putPair(root.issue())
			srv := server(t, ServerFiles{Cert: cert, Key: key, ClientCA: f.put("ca.pem", root.pem())})
			outer, client := srv.Config(), speaking(root.caller(root.issue()), version)
			resumes := func(want bool) {
				t.Helper()
				time.Sleep(lookAgain)
				if resumed, _ := mustVisit(t, outer, client); resumed != want {
					t.Errorf("version %x: resumed %v", version, resumed)
				}
			}
			resumes(false)
			resumes(true)
			f.putPair(root.issue())
			resumes(true)
			f.put("ca.pem", "spoilt")
			resumes(true)
			f.put("ca.pem", root.pem()+other.pem())
			resumes(false)
			resumes(true)
			f.put("ca.pem", other.pem())
			time.Sleep(lookAgain)
			if refusal(t, outer, client) == nil {
				t.Errorf("version %x: a client of the former authority was admitted", version)
			}
		}
	})
}

// Without a master from outside, a server has its own and a new one each day.
func TestServerRotatesItsOwnTickets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := newRoot(t, "root")
		srv := server(t, root.texts(func(f *ServerFiles) { f.ClientCA = "" }))
		client := root.caller(nil)
		mustVisit(t, srv.Config(), client)
		first := srv.master[0]
		time.Sleep(ticketRotation)
		if resumed, _ := mustVisit(t, srv.Config(), client); !resumed || srv.master[1] != first || srv.master[0] == first {
			t.Errorf("resumed %v, with %d keys", resumed, len(srv.master))
		}
		given := RotateTickets(nil)
		srv.SetTickets(given)
		given[0][0]++ // is the caller's again
		time.Sleep(ticketRotation)
		srv.current()
		if len(srv.master) != 1 || bytes.Equal(srv.master[0][:], given[0][:]) {
			t.Error("a master from outside was changed")
		}
	})
}
