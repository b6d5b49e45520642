package main

import (
	"crypto/tls"
	"fmt"
	"strings"

	"github.com/holdfast-net/holdfast"
	"github.com/spf13/pflag"
)

// tlsFlags are the flags of verbs that connect by tls://. None turns verification
// off.
type tlsFlags struct {
	files holdfast.TLSFiles
	sni   string
}

func (f *tlsFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.files.CA, "ca", "", "file of authorities to trust instead of the system's")
	flags.StringVar(&f.files.Cert, "cert", "", "file of the client certificate")
	flags.StringVar(&f.files.Key, "key", "", "file of its key")
	flags.StringArrayVar(&f.files.Pins, "pin", nil, "sha256/BASE64 of a public key that must be in the chain; give at least two")
	flags.StringVar(&f.sni, "sni", "", "name to send and to verify, for addresses without ?sni=")
}

// given reports whether a flag asks for a file or a key.
func (f *tlsFlags) given() bool {
	return f.files.CA != "" || f.files.Cert != "" || f.files.Key != "" || f.files.Pins != nil
}

// config reads the files. It is nil when no flag asks for any.
func (f *tlsFlags) config() (*tls.Config, error) {
	if !f.given() {
		return nil, nil
	}
	cfg, err := f.files.Config()
	if err != nil {
		return nil, usage(err, "")
	}
	return cfg, nil
}

// endpoints reads ADDR[,ADDR…] and applies --sni.
func (f *tlsFlags) endpoints(arg string) (endpoints []holdfast.Endpoint, addrs []string, err error) {
	for addr := range strings.SplitSeq(arg, ",") {
		e, err := holdfast.ParseEndpoint(addr)
		if err != nil {
			return nil, nil, usage(err, "addresses look like tcp://127.0.0.1:7000, tls://example.net:443 or unix:/run/app.sock")
		}
		if f.sni != "" && e.TLS && e.ServerName == "" {
			e.ServerName = f.sni
			addr += separator(addr) + "sni=" + f.sni
		}
		endpoints, addrs = append(endpoints, e), append(addrs, addr)
	}
	if f.sni != "" && !anyTLS(endpoints) {
		return nil, nil, usage(fmt.Errorf("--sni %s: no address is tls://", f.sni), "")
	}
	return endpoints, addrs, nil
}

func separator(addr string) string {
	if strings.Contains(addr, "?") {
		return "&"
	}
	return "?"
}

func anyTLS(endpoints []holdfast.Endpoint) bool {
	for _, e := range endpoints {
		if e.TLS {
			return true
		}
	}
	return false
}
