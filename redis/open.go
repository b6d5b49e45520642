package redis

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/holdfast-net/holdfast"
)

// Open returns a Client and the Cluster it needs, which Close closes too. The address
// is one of
//
//	redis://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]…][/DB]
//	rediss://…                        the same over TLS
//	unix://[USER:PASSWORD@]/path/of/socket
//	sentinel://[USER:PASSWORD@]SENTINEL[:PORT][,…]/NAME[/DB]
//	sentinels://…                     the same over TLS, sentinels too
//
// with the parameters db, protocol (2 or 3), name, and role (primary or replica). The
// port of a server is 6379 unless it is said, that of a sentinel 26379. A sentinel's
// service has the role primary unless it is said. The password is that of the servers.
// Nothing is connected to yet.
func Open(address string) (*Client, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("redis: the address is no URL") // the error would repeat the password
	}
	o, err := parseURL(u)
	if err != nil {
		return nil, fmt.Errorf("redis: %s: %w", u.Redacted(), err)
	}
	c, err := holdfast.New(o.source, holdfast.Config{TLS: o.tls})
	if err != nil {
		return nil, fmt.Errorf("redis: %s: %w", u.Redacted(), err)
	}
	r := New(c, o.cfg)
	r.own = true
	return r, nil
}

// opened is what an address says.
type opened struct {
	source holdfast.Resolver
	cfg    Config
	tls    *tls.Config
}

func parseURL(u *url.URL) (o opened, err error) {
	if u.User != nil {
		user := u.User.Username()
		password, _ := u.User.Password()
		o.cfg.Credentials = func(context.Context) (string, string, error) { return user, password, nil }
	}
	path := u.Path
	switch u.Scheme {
	case "redis", "rediss":
		var addrs []string
		if addrs, err = hosts(u.Host, "6379", u.Scheme == "rediss"); err == nil {
			o.source = holdfast.Static(addrs...)
		}
	case "unix":
		o.source, path = holdfast.Static("unix:"+u.Path), ""
	case "sentinel", "sentinels":
		path, err = o.sentinel(u)
	default:
		err = fmt.Errorf("the scheme is none of redis, rediss, unix, sentinel and sentinels")
	}
	if err == nil {
		err = o.parameters(strings.Trim(path, "/"), u.Query())
	}
	return o, err
}

// sentinel returns what of the path is behind the name of the service.
func (o *opened) sentinel(u *url.URL) (path string, err error) {
	addrs, err := hosts(u.Host, "26379", u.Scheme == "sentinels")
	if err != nil {
		return "", err
	}
	name, path, _ := strings.Cut(strings.Trim(u.Path, "/"), "/")
	if name == "" {
		return "", fmt.Errorf("the name of the service is missing: sentinel://host/NAME")
	}
	o.cfg.Role = Primary
	if u.Query().Get("role") == "replica" {
		o.cfg.Role = Replica
	}
	o.source = &Sentinel{Addrs: addrs, Service: name, Role: o.cfg.Role, TLS: u.Scheme == "sentinels"}
	return path, nil
}

// hosts are the addresses of a list.
func hosts(list, port string, tls bool) (addrs []string, err error) {
	scheme := "tcp://"
	if tls {
		scheme = "tls://"
	}
	for host := range strings.SplitSeq(list, ",") {
		if host == "" {
			return nil, fmt.Errorf("a host is missing")
		}
		if _, _, err := net.SplitHostPort(host); err != nil {
			host = net.JoinHostPort(strings.Trim(host, "[]"), port)
		}
		addrs = append(addrs, scheme+host)
	}
	return addrs, nil
}

func (o *opened) parameters(db string, q url.Values) (err error) {
	if given := q.Get("db"); given != "" {
		db = given
	}
	if db != "" {
		if o.cfg.DB, err = strconv.Atoi(db); err != nil || o.cfg.DB < 0 {
			return fmt.Errorf("the database %q is no number", db)
		}
	}
	for key := range q {
		switch value := q.Get(key); key {
		case "db":
		case "name":
			o.cfg.Name = value
		case "protocol":
			o.cfg.Protocol, err = strconv.Atoi(value)
			if err != nil || o.cfg.Protocol != 2 && o.cfg.Protocol != 3 {
				return fmt.Errorf("there is no protocol %q", value)
			}
		case "role":
			role, ok := map[string]Role{"primary": Primary, "replica": Replica}[value]
			if !ok {
				return fmt.Errorf("there is no role %q", value)
			}
			o.cfg.Role = role
		default:
			return fmt.Errorf("there is no parameter %q", key)
		}
	}
	return nil
}
