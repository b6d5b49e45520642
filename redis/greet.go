package redis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/pipeline"
)

// greet prepares a new connection: who we are, in which protocol we speak, which
// database we mean, and whether the server is one that we want.
func (r *Client) greet(ctx context.Context, s *pipeline.Setup[Value]) error {
	g := greeting{r: r, s: s}
	if r.cfg.Credentials != nil {
		var err error
		if g.user, g.password, err = r.cfg.Credentials(ctx); err != nil {
			return fmt.Errorf("redis: the credentials: %w", err)
		}
	}
	for _, step := range []func() error{g.hello, g.database, g.name, g.library, g.role} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

type greeting struct {
	r              *Client
	s              *pipeline.Setup[Value]
	user, password string
	named          bool
}

// do sends a command. An error reply is the Value's, any other error the stream's.
func (g *greeting) do(args ...any) (Value, error) {
	return g.s.Do(command(args))
}

// must sends a command that must succeed.
func (g *greeting) must(args ...any) error {
	v, err := g.do(args...)
	if err == nil {
		err = v.Err()
	}
	return err
}

// hello asks for RESP3, and falls back where a server, or a proxy in front of it, has
// never heard of that.
func (g *greeting) hello() error {
	if g.r.cfg.Protocol == 2 {
		return g.auth()
	}
	args := []any{"HELLO", 3}
	if g.password != "" {
		args = append(args, "AUTH", cmp.Or(g.user, "default"), g.password)
	}
	if g.r.cfg.Name != "" {
		args = append(args, "SETNAME", g.r.cfg.Name)
	}
	v, err := g.do(args...)
	if err != nil {
		return err
	}
	refusal := v.Err()
	if refusal == nil {
		g.named = true
		return nil
	}
	if e, ok := errors.AsType[*Error](refusal); ok && (e.Code == "NOPROTO" || e.Code == "ERR") {
		return g.auth()
	}
	return denied(refusal)
}

func (g *greeting) auth() error {
	switch {
	case g.password == "":
		return nil
	case g.user == "":
		return denied(g.must("AUTH", g.password))
	}
	return denied(g.must("AUTH", g.user, g.password))
}

func (g *greeting) database() error {
	if g.r.cfg.DB == 0 {
		return nil
	}
	return denied(g.must("SELECT", g.r.cfg.DB))
}

func (g *greeting) name() error {
	if g.named || g.r.cfg.Name == "" {
		return nil
	}
	return denied(g.must("CLIENT", "SETNAME", g.r.cfg.Name))
}

// library tells the server who asks, for its CLIENT LIST. Old ones do not know what
// that is, and that is no failure.
func (g *greeting) library() error {
	_, err := g.do("CLIENT", "SETINFO", "LIB-NAME", "holdfast")
	return err
}

// role checks what the server says it is. A name or a sentinel may be behind the times.
func (g *greeting) role() error {
	want := map[Role]string{Primary: "master", Replica: "slave"}[g.r.cfg.Role]
	if want == "" {
		return nil
	}
	v, err := g.do("ROLE")
	if err != nil {
		return err
	}
	parts, err := v.Values()
	if err != nil || len(parts) == 0 {
		return fmt.Errorf("redis: ROLE: %w", cmp.Or(err, errNoRole))
	}
	if is, _ := parts[0].Text(); is != want {
		return fmt.Errorf("redis: the server is a %s, and a %s is wanted", clip(is), want)
	}
	return nil
}

var errNoRole = errors.New("an empty answer")

// denied marks what no other server will cure: a wrong password, a user who may not.
func denied(err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return err
	}
	switch e.Code {
	case "WRONGPASS", "NOAUTH", "NOPERM":
		return holdfast.Permanent(err)
	}
	if e.Code == "ERR" && (strings.Contains(e.Msg, "invalid password") || strings.Contains(e.Msg, "DB index")) {
		return holdfast.Permanent(err)
	}
	return err
}
