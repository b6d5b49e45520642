package restart

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"
)

// HTTP makes a Server of an http.Server that loses no request when it leaves. Its
// own Shutdown closes idle connections at once, just as a client may be about to
// use one. Here they stay open until the client has been told: every answer says
// "Connection: close", which over HTTP/2 is a GOAWAY, and only what is still idle
// at the end of the drain, less one second, is closed.
//
// It wraps srv.Handler and srv.ConnState. If srv.TLSConfig is set, connections are
// TLS, and their tickets are good at every generation.
func HTTP(srv *http.Server) Server {
	h := &httpServer{srv: srv, open: map[net.Conn]struct{}{}, empty: make(chan struct{})}
	handler := srv.Handler
	if handler == nil {
		handler = http.DefaultServeMux
	}
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.draining() {
			w.Header().Set("Connection", "close")
		}
		handler.ServeHTTP(w, r)
	})
	state := srv.ConnState
	srv.ConnState = func(conn net.Conn, s http.ConnState) {
		h.track(conn, s)
		if state != nil {
			state(conn, s)
		}
	}
	if srv.TLSConfig != nil {
		srv.TLSConfig = srv.TLSConfig.Clone()
		if len(srv.TLSConfig.NextProtos) == 0 {
			srv.TLSConfig.NextProtos = []string{"h2", "http/1.1"}
		}
	}
	return h
}

type httpServer struct {
	srv *http.Server

	mu    sync.Mutex
	open  map[net.Conn]struct{}
	drain bool
	empty chan struct{} // closed when draining and nothing is open
}

func (h *httpServer) Serve(ln net.Listener) error {
	if h.srv.TLSConfig != nil {
		ln = tls.NewListener(ln, h.srv.TLSConfig)
	}
	return h.srv.Serve(ln)
}

// TicketKeys implements what [Server] says of it.
func (h *httpServer) TicketKeys(keys [][32]byte) {
	if h.srv.TLSConfig != nil {
		h.srv.TLSConfig.SetSessionTicketKeys(keys)
	}
}

func (h *httpServer) draining() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.drain
}

func (h *httpServer) track(conn net.Conn, s http.ConnState) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch s {
	case http.StateNew:
		h.open[conn] = struct{}{}
	case http.StateClosed, http.StateHijacked:
		delete(h.open, conn)
	}
	h.checkEmptyLocked()
}

func (h *httpServer) checkEmptyLocked() {
	if !h.drain || len(h.open) > 0 {
		return
	}
	select {
	case <-h.empty:
	default:
		close(h.empty)
	}
}

// last is kept of the drain for those who never ask again.
const last = time.Second

func (h *httpServer) Shutdown(ctx context.Context) error {
	h.mu.Lock()
	h.drain = true
	h.checkEmptyLocked()
	h.mu.Unlock()

	patient, cancel := context.WithCancel(ctx)
	defer cancel()
	if end, ok := ctx.Deadline(); ok {
		patient, cancel = context.WithDeadline(ctx, end.Add(-min(last, time.Until(end)/2)))
		defer cancel()
	}
	select {
	case <-h.empty:
	case <-patient.Done():
	}
	err := h.srv.Shutdown(ctx)
	if err != nil {
		h.srv.Close()
	}
	return err
}
