package integrations

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// postgresUser is who runs the server: it refuses root.
func postgresUser(t *testing.T) *syscall.Credential {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		missing(t, "there is no user postgres: "+err.Error())
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// newDatabase makes the files of one database server, owned by who will run it.
func newDatabase(t *testing.T, as *syscall.Credential) (dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "holdfast-pg-") // t.TempDir lies below a folder others may not enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if as != nil {
		if err := os.Chown(dir, int(as.Uid), int(as.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	initdb := exec.Command(need(t, "initdb"), "-D", filepath.Join(dir, "data"), "-U", "app", "-A", "trust", "-N", "--no-instructions")
	initdb.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	initdb.Dir = dir
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	return dir
}

func startPostgres(t *testing.T, as *syscall.Credential, dir string) *process {
	t.Helper()
	addr, port := freeAddr(t)
	p := run(t, addr, as, need(t, "postgres"), "-D", filepath.Join(dir, "data"), "-p", strconv.Itoa(port),
		"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="+dir, "-c", "fsync=off", "-c", "max_connections=20")
	up := eventually(func() bool { // it accepts before it is up
		conn, err := pgconn.Connect(t.Context(), "postgres://app@"+addr+"/postgres?sslmode=disable")
		if err != nil {
			return false
		}
		conn.Close(t.Context())
		return true
	})
	if !up {
		t.Fatal("postgres is not up")
	}
	return p
}

// openPool is what a user writes: DialFunc, and LookupFunc so that pgx does not
// resolve the name before the Cluster sees it.
func openPool(t *testing.T, c *holdfast.Cluster) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig("postgres://app@db:5432/postgres?sslmode=disable&pool_max_conns=6")
	if err != nil {
		t.Fatal(err)
	}
	cfg.ConnConfig.DialFunc = c.DialContext
	cfg.ConnConfig.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func TestPgxFailsOver(t *testing.T) {
	need(t, "postgres")
	as := postgresUser(t)
	var servers [2]*process
	var wg sync.WaitGroup
	dirs := [2]string{}
	for i := range dirs {
		wg.Go(func() { dirs[i] = newDatabase(t, as) })
	}
	wg.Wait()
	for i, dir := range dirs {
		if dir == "" {
			t.FailNow()
		}
		servers[i] = startPostgres(t, as, dir)
	}
	c := clusterOf(t, holdfast.Config{Picker: holdfast.RoundRobin()}, servers[0].addr, servers[1].addr)
	pool := openPool(t, c)

	holdAll(t, pool, 6)
	spread(t, c)
	t.Run("a cancel reaches the server that runs the query", func(t *testing.T) { cancelEverywhere(t, pool) })

	servers[0].kill()
	for i := range 20 {
		var one int
		err := pool.QueryRow(t.Context(), "select 1").Scan(&one)
		// The query that finds its connection cut may already have been sent: pgx
		// must not repeat it, and says so. The next one goes to the other server.
		if err != nil && pgconn.SafeToRetry(err) {
			t.Errorf("query %d after the kill: %v", i, err)
		}
		if err != nil {
			if err := pool.QueryRow(t.Context(), "select 1").Scan(&one); err != nil {
				t.Fatalf("the next operation after %d failed too: %v", i, err)
			}
		}
	}
}

// holdAll takes n connections at once, so that the pool has to open them all.
func holdAll(t *testing.T, pool *pgxpool.Pool, n int) {
	t.Helper()
	var held []*pgxpool.Conn
	for range n {
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
	}
	for _, conn := range held {
		conn.Release()
	}
}

// cancelEverywhere cancels a query on several connections. A cancel request is a
// connection of its own, which must lead to the very server that runs the query.
func cancelEverywhere(t *testing.T, pool *pgxpool.Pool) {
	var held []*pgxpool.Conn
	defer func() {
		for _, conn := range held {
			conn.Release()
		}
	}()
	for range 4 {
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
		done := make(chan error, 1)
		go func() {
			_, err := conn.Exec(t.Context(), "select pg_sleep(30)")
			done <- err
		}()
		waitSleeping(t, pool, conn.Conn().PgConn())
		start := time.Now()
		if err := conn.Conn().PgConn().CancelRequest(t.Context()); err != nil {
			t.Fatal(err)
		}
		var pgErr *pgconn.PgError
		if err := <-done; !errors.As(err, &pgErr) || pgErr.Code != "57014" {
			t.Errorf("the query ended with %v, want query_canceled (57014)", err)
		}
		if d := time.Since(start); d > 15*time.Second {
			t.Errorf("the cancel took %v", d)
		}
	}
}

// waitSleeping waits until the server says that the query of conn runs.
func waitSleeping(t *testing.T, pool *pgxpool.Pool, conn *pgconn.PgConn) {
	t.Helper()
	addr := conn.Conn().RemoteAddr()
	ask, err := pgconn.Connect(t.Context(), "postgres://app@"+addr.String()+"/postgres?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	defer ask.Close(context.Background())
	pid := strconv.Itoa(int(conn.PID()))
	for {
		res := ask.ExecParams(t.Context(), "select 1 from pg_stat_activity where pid = $1::int and wait_event = 'PgSleep'",
			[][]byte{[]byte(pid)}, nil, nil, nil).Read()
		if res.Err != nil {
			t.Fatal(res.Err)
		}
		if len(res.Rows) > 0 {
			return
		}
	}
}
