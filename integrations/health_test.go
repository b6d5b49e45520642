package integrations

import (
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/health"
	"github.com/jackc/pgx/v5/pgconn"
)

// check makes one check of a real server, and says whether it is as wanted: "" is
// healthy, else a part of the error.
func check(t *testing.T, m *health.Monitor, want map[string]string) {
	t.Helper()
	for name, r := range m.CheckAll(t.Context()) {
		switch want := want[name]; {
		case want == "" && !r.Healthy:
			t.Errorf("%s is unhealthy: %v", name, r.Err)
		case want != "" && (r.Err == nil || !strings.Contains(r.Err.Error(), want)):
			t.Errorf("%s: %v, want %q", name, r.Err, want)
		}
	}
}

func monitor(t *testing.T, services map[string]health.Service) *health.Monitor {
	t.Helper()
	for name, s := range services {
		s.Config.Check.Timeout = 20 * time.Second
		services[name] = s
	}
	m, err := health.New(health.Config{Services: services})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestHealthOfRedis(t *testing.T) {
	open := startRedis(t)
	addr, port := freeAddr(t)
	locked := run(t, addr, nil, need(t, "redis-server"),
		"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--save", "", "--dir", t.TempDir(), "--requirepass", "secret", "--replicaof", "127.0.0.1", "1")
	probe := func(p health.Redis) holdfast.Config { return holdfast.Config{Probe: p.Probe} }
	check(t, monitor(t, map[string]health.Service{
		"open":         {Addr: open.addr, Kind: "redis"},
		"master":       {Addr: open.addr, Kind: "redis master"},
		"not slave":    {Addr: open.addr, Kind: "redis slave"},
		"as exchange":  {Addr: open.addr, Kind: `send PING\r\n expect +PONG\r\n send "INFO replication\r\n" match role:(master|slave)`},
		"locked":       {Addr: locked.addr, Kind: "redis"},
		"key":          {Addr: locked.addr, Config: probe(health.Redis{Password: "secret", Role: "slave"})},
		"key and name": {Addr: locked.addr, Config: probe(health.Redis{User: "default", Password: "secret"})},
		"wrong key":    {Addr: locked.addr, Config: probe(health.Redis{Password: "guess"})},
	}), map[string]string{"not slave": `is a "master"`, "locked": "NOAUTH", "wrong key": "WRONGPASS"})
}

// Up is a server that takes clients, also one that would not take this one; a server that
// waits for its last clients to leave takes none.
func TestHealthOfPostgres(t *testing.T) {
	need(t, "postgres")
	as := postgresUser(t)
	server := startPostgres(t, as, newDatabase(t, as))
	m := monitor(t, map[string]health.Service{
		"stranger":    {Addr: server.addr, Kind: "postgres"},
		"user":        {Addr: server.addr, Kind: "postgres app postgres"},
		"no database": {Addr: server.addr, Kind: "postgres app nowhere"},
	})
	eventually(func() bool { m.CheckAll(t.Context()); return len(m.Healthy()) == 3 }) // it accepts before it is up
	check(t, m, nil)

	client, err := pgconn.Connect(t.Context(), "postgres://app@"+server.addr+"/postgres?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close(t.Context())
	server.cmd.Process.Signal(syscall.SIGTERM)
	if !eventually(func() bool { return len(m.CheckAll(t.Context())) == 3 && len(m.Healthy()) == 0 }) {
		t.Fatalf("while it shuts down %q are healthy", m.Healthy())
	}
	check(t, m, map[string]string{"stranger": "57P03", "user": "57P03", "no database": "57P03"})
}

// eventually waits until something holds.
func eventually(holds func() bool) bool {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); <-tick.C {
		if holds() {
			return true
		}
	}
	return false
}
