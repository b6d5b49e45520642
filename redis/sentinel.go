package redis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-net/holdfast"
)

// Sentinel is a source of endpoints for a Cluster: the primary of a service, or its
// replicas, as the sentinels see them. It asks one of them, listens to it for changes,
// asks anew every Refresh in any case, and goes on to the next when one is silent.
// Sentinels can be behind the times, so a Client checks the Role of a server itself.
//
//	c, err := holdfast.New(&redis.Sentinel{Addrs: addrs, Service: "cache"}, holdfast.Config{})
//	rdb := redis.New(c, redis.Config{Role: redis.Primary})
type Sentinel struct {
	Addrs   []string // of the sentinels, in the grammar of holdfast.ParseEndpoint
	Service string   // the name that they know it by
	Role    Role     // Replica is all usable replicas; anything else is the primary
	TLS     bool     // of the servers that they name

	Credentials func(ctx context.Context) (user, password string, err error) // of the sentinels; nil is none
	Cluster     holdfast.Config                                              // how they are connected to
	Refresh     time.Duration                                                // 0 means 10 s
}

// Watch implements holdfast.Resolver.
func (s *Sentinel) Watch(ctx context.Context, push func([]holdfast.Endpoint, error)) {
	c, err := holdfast.New(holdfast.Static(s.Addrs...), s.Cluster)
	if err != nil {
		push(nil, err)
		return
	}
	defer c.Close()
	r := New(c, Config{Credentials: s.Credentials, Attempts: max(3, len(s.Addrs)), WaitDown: time.Second})
	defer r.Close()
	refresh := cmp.Or(s.Refresh, 10*time.Second)
	for ctx.Err() == nil {
		push(s.ask(ctx, r))
		s.listen(ctx, r, refresh)
	}
}

// askTime bounds one question.
const askTime = 2 * time.Second

// ask asks until a sentinel knows the service: one that has just started may not.
func (s *Sentinel) ask(ctx context.Context, r *Client) (found []holdfast.Endpoint, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	for range s.Addrs {
		if s.Role == Replica {
			found, err = s.replicas(ctx, r)
		} else {
			found, err = s.primary(ctx, r)
		}
		if err == nil || ctx.Err() != nil {
			return found, err
		}
	}
	return nil, fmt.Errorf("redis: the sentinels: %w", err)
}

func (s *Sentinel) primary(ctx context.Context, r *Client) ([]holdfast.Endpoint, error) {
	at, err := r.Do(ctx, "SENTINEL", "get-master-addr-by-name", s.Service).Strings()
	switch {
	case errors.Is(err, Nil):
		return nil, fmt.Errorf("redis: no sentinel knows %q", s.Service)
	case err != nil:
		return nil, err
	case len(at) != 2:
		return nil, fmt.Errorf("redis: a sentinel named a primary in %d parts", len(at))
	}
	return []holdfast.Endpoint{s.endpoint(at[0], at[1])}, nil
}

func (s *Sentinel) replicas(ctx context.Context, r *Client) (found []holdfast.Endpoint, err error) {
	all, err := r.Do(ctx, "SENTINEL", "replicas", s.Service).Values()
	if err != nil {
		return nil, err
	}
	for _, one := range all {
		about, err := one.Map()
		if err != nil {
			return nil, err
		}
		flags := strings.Split(about["flags"], ",")
		down := slices.ContainsFunc(flags, func(f string) bool { return f == "s_down" || f == "o_down" || f == "disconnected" })
		if !down && about["master-link-status"] != "err" {
			found = append(found, s.endpoint(about["ip"], about["port"]))
		}
	}
	return found, nil
}

func (s *Sentinel) endpoint(host, port string) holdfast.Endpoint {
	return holdfast.Endpoint{Network: "tcp", Addr: net.JoinHostPort(host, port), TLS: s.TLS}
}

// listen waits until a sentinel tells of a change, or it is time to ask again.
func (s *Sentinel) listen(ctx context.Context, r *Client, refresh time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, refresh)
	defer cancel()
	sub, err := r.Subscribe(ctx, "+switch-master", "+slave", "+sdown", "-sdown", "+reboot")
	if err != nil {
		select { // nobody to listen to: ask again soon
		case <-time.After(min(time.Second, refresh)):
		case <-ctx.Done():
		}
		return
	}
	defer sub.Close()
	for {
		m, err := sub.Receive(ctx)
		if err != nil || m.Gap != nil || concerns(m.Payload, s.Service) {
			return
		}
	}
}

// concerns reports whether what a sentinel says is about a service: the first word is
// its name, or the fifth behind "@".
func concerns(payload, service string) bool {
	words := strings.Fields(payload)
	return slices.Contains(words, service)
}
