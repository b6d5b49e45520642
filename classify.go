package holdfast

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"reflect"
	"syscall"

	"github.com/holdfast-net/holdfast/internal/certs"
	"github.com/holdfast-net/holdfast/internal/dns"
)

// Class is the kind of an error: what it says about the peer and about trying
// again. Its text form is the label of metrics and logs.
type Class uint8

const (
	ClassOther         Class = iota // an error of the operation itself
	ClassRefused                    // nobody listens
	ClassTimeout                    // a dial, handshake, read, write or operation limit
	ClassUnreachable                // no route to host or network
	ClassReset                      // cut by the peer or the network
	ClassEOF                        // closed by the peer, cleanly or inside a message
	ClassIO                         // EIO and other errors of the device
	ClassProtocol                   // bytes that should not be there
	ClassUnprocessed                // the peer said it did not act; see Unprocessed
	ClassDenied                     // EACCES, EPERM
	ClassResource                   // files, memory, ports or time of this host ran out
	ClassExhausted                  // the pool's or the queue's limit
	ClassCanceled                   // the caller's context
	ClassClosed                     // closed on this side
	ClassNoEndpoint                 // nothing to dial
	ClassDNS                        // SERVFAIL, malformed and other resolver trouble
	ClassDNSTimeout                 //
	ClassDNSRefused                 //
	ClassDNSNotFound                // NXDOMAIN
	ClassDNSEmpty                   // the name exists without addresses
	ClassTLS                        // a handshake failed otherwise
	ClassTLSExpired                 // or is not valid yet
	ClassTLSHostname                //
	ClassTLSAuthority               // unknown authority, self-signed
	ClassTLSPin                     //
	ClassTLSRevoked                 //
	ClassTLSVersion                 // no common version or cipher
	ClassTLSClientCert              // the peer refused ours
	numClasses
)

var classNames = [numClasses]string{"other", "refused", "timeout", "unreachable", "reset", "eof", "io",
	"protocol", "unprocessed", "denied", "resource", "exhausted", "canceled", "closed", "no_endpoint",
	"dns", "dns_timeout", "dns_refused", "dns_not_found", "dns_empty",
	"tls", "tls_expired", "tls_hostname", "tls_authority", "tls_pin", "tls_revoked", "tls_version", "tls_client_cert"}

func (c Class) String() string               { return classNames[c] }
func (c Class) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Transient reports whether the same thing may succeed later without anyone
// mending a configuration. Only transient failures are worth another round.
func (c Class) Transient() bool {
	switch c {
	case ClassRefused, ClassTimeout, ClassUnreachable, ClassReset, ClassEOF, ClassIO, ClassUnprocessed,
		ClassDNS, ClassDNSTimeout, ClassDNSRefused:
		return true
	}
	return false
}

// local reports whether the failure is ours, so that no node may be blamed.
func (c Class) local() bool {
	switch c {
	case ClassResource, ClassExhausted, ClassCanceled, ClassClosed, ClassNoEndpoint:
		return true
	}
	return false
}

// origin tells failures seen from here (0) from those the peer told us of (1):
// they are counted apart.
func (c Class) origin() int {
	switch c {
	case ClassOther, ClassProtocol, ClassUnprocessed:
		return 1
	}
	return 0
}

// Classify is the one place that says what an error means. Types and errno
// decide, never texts. EOF is transient because it is how a restarting server
// says goodbye; ETIMEDOUT and a deadline are the same event seen by the kernel
// and by us; a closed connection of our own is nobody's fault.
func Classify(err error) Class {
	var own *Error
	if errors.As(err, &own) {
		return own.Class
	}
	var name *dns.Error // before the sentinels: its cause is how it failed, not what
	if errors.As(err, &name) && !errors.Is(err, context.Canceled) && !errors.Is(err, net.ErrClosed) {
		return dnsClasses[name.Kind]
	}
	for _, m := range sentinelClasses {
		if errors.Is(err, m.err) {
			return m.class
		}
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		if class := classifyErrno(errno); class != ClassOther {
			return class
		}
	}
	return classifyTyped(err)
}

var sentinelClasses = []struct {
	err   error
	class Class
}{
	{context.Canceled, ClassCanceled},
	{context.DeadlineExceeded, ClassTimeout},
	{os.ErrDeadlineExceeded, ClassTimeout},
	{ErrPoolExhausted, ClassExhausted},
	{ErrNoEndpoint, ClassNoEndpoint},
	{net.ErrClosed, ClassClosed},
	{io.ErrClosedPipe, ClassClosed},
	{errStarved, ClassResource},
	{io.EOF, ClassEOF},
	{io.ErrUnexpectedEOF, ClassEOF},
}

func classifyErrno(errno syscall.Errno) Class {
	switch errno {
	case syscall.ECONNREFUSED, syscall.ENOENT: // ENOENT: a Unix socket that is not there
		return ClassRefused
	case syscall.ETIMEDOUT:
		return ClassTimeout
	case syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ENETDOWN, syscall.ENETRESET, syscall.EHOSTDOWN:
		return ClassUnreachable
	case syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE, syscall.ENOTCONN:
		return ClassReset
	case syscall.EIO:
		return ClassIO
	case syscall.EACCES, syscall.EPERM:
		return ClassDenied
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.EADDRNOTAVAIL, syscall.EADDRINUSE:
		return ClassResource
	}
	return ClassOther
}

func classifyTyped(err error) Class {
	var (
		std  *net.DNSError
		tout interface{ Timeout() bool }
	)
	if errors.As(err, &std) {
		return classifyDNS(std)
	}
	if class := classifyTLS(err); class != ClassOther {
		return class
	}
	if errors.As(err, &tout) && tout.Timeout() {
		return ClassTimeout
	}
	if errors.As(err, &tlsFailure{}) {
		return ClassTLS
	}
	if has(err, unprocessed) {
		return ClassUnprocessed
	}
	return ClassOther
}

var dnsClasses = map[dns.Kind]Class{
	dns.NotFound: ClassDNSNotFound, dns.Empty: ClassDNSEmpty, dns.Refused: ClassDNSRefused,
	dns.Timeout: ClassDNSTimeout, dns.ServFail: ClassDNS, dns.Malformed: ClassDNS,
}

func classifyDNS(err *net.DNSError) Class {
	switch {
	case err.IsNotFound:
		return ClassDNSNotFound
	case err.IsTimeout:
		return ClassDNSTimeout
	}
	return ClassDNS
}

// Alerts by which a peer refuses our certificate, and those by which it finds no
// common ground (RFC 8446 §6.2).
var (
	certAlerts    = map[tls.AlertError]bool{42: true, 43: true, 44: true, 45: true, 46: true, 48: true, 49: true, 116: true}
	versionAlerts = map[tls.AlertError]bool{40: true, 70: true, 71: true}
)

func classifyTLS(err error) Class {
	var (
		pin     *certs.PinError
		revoked *certs.RevokedError
		host    x509.HostnameError
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
		verify  *tls.CertificateVerificationError
		record  tls.RecordHeaderError
	)
	alert, alerted := remoteAlert(err)
	switch {
	case errors.As(err, &pin):
		return ClassTLSPin
	case errors.As(err, &revoked):
		return ClassTLSRevoked
	case errors.As(err, &host):
		return ClassTLSHostname
	case errors.As(err, &unknown):
		return ClassTLSAuthority
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return ClassTLSExpired
	case certAlerts[alert]:
		return ClassTLSClientCert
	case versionAlerts[alert]:
		return ClassTLSVersion
	case alerted, errors.As(err, &invalid), errors.As(err, &verify), errors.As(err, &record):
		return ClassTLS
	}
	return ClassOther
}

// tlsFailure marks an error of a TLS handshake, for most have no type of their own.
type tlsFailure struct{ error }

func (f tlsFailure) Unwrap() error { return f.error }

// remoteAlert is the alert by which the peer ended TLS. crypto/tls has a type for
// alerts, but over TCP it returns an unexported one: a byte in a [net.OpError].
func remoteAlert(err error) (tls.AlertError, bool) {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return 0, false
	}
	v := reflect.ValueOf(op.Err)
	if v.Kind() != reflect.Uint8 {
		return 0, false
	}
	return tls.AlertError(v.Uint()), true
}
