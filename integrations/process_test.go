package integrations

import (
	"bytes"
	"fmt"
	"net"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
)

// process is a real server that the test started and ends.
type process struct {
	cmd  *exec.Cmd
	addr string
	out  bytes.Buffer
	dead chan struct{}
	once sync.Once
}

// run starts a server and waits until it accepts on addr. as runs it under
// another user, which PostgreSQL insists on.
func run(t *testing.T, addr string, as *syscall.Credential, name string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(name, args...), addr: addr, dead: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.cmd.Wait()
		close(p.dead)
	}()
	t.Cleanup(p.kill)
	if !p.accepts(20 * time.Second) {
		p.kill()
		t.Fatalf("%s did not listen on %s:\n%s", name, addr, p.out.String())
	}
	return p
}

// accepts waits until the server takes connections.
func (p *process) accepts(limit time.Duration) bool {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(limit); time.Now().Before(end); {
		if conn, err := net.Dial("tcp", p.addr); err == nil {
			conn.Close()
			return true
		}
		select {
		case <-p.dead:
			return false
		case <-tick.C:
		}
	}
	return false
}

// kill ends the server without warning and waits for it.
func (p *process) kill() {
	p.once.Do(func() { p.cmd.Process.Kill() })
	<-p.dead
}

// freeAddr is a loopback address that nobody listens on now.
func freeAddr(t *testing.T) (addr string, port int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port = ln.Addr().(*net.TCPAddr).Port
	return fmt.Sprintf("127.0.0.1:%d", port), port
}

// clusterOf is a Cluster over addrs that is closed at the end of the test.
func clusterOf(t *testing.T, cfg holdfast.Config, addrs ...string) *holdfast.Cluster {
	t.Helper()
	c, err := holdfast.New(holdfast.Static(addrs...), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// spread fails the test unless every node has served.
func spread(t *testing.T, c *holdfast.Cluster) {
	t.Helper()
	for _, n := range c.Stats().Nodes {
		if n.Dials == n.DialFailures {
			t.Errorf("node %s was never used: %+v", n.Node, n)
		}
	}
}
