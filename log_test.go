package holdfast_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

// levelPayload is where Config.Payload says its lines are.
const levelPayload = slog.LevelDebug - 4

// record is one line of a log.
type record struct {
	level slog.Level
	msg   string
	attrs map[string]slog.Value
}

func (r record) String() string { return fmt.Sprintf("%v %s %v", r.level, r.msg, r.attrs) }

// recorder is a log handler that is given each line.
type recorder func(record)

func (f recorder) at(level slog.Level) *slog.Logger { return slog.New(recording{f, level}) }

type recording struct {
	to    recorder
	level slog.Level
}

func (h recording) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level }
func (h recording) WithAttrs([]slog.Attr) slog.Handler               { return h }
func (h recording) WithGroup(string) slog.Handler                    { return h }

func (h recording) Handle(_ context.Context, r slog.Record) error {
	line := record{r.Level, r.Message, map[string]slog.Value{}}
	r.Attrs(func(a slog.Attr) bool { line.attrs[a.Key] = a.Value; return true })
	h.to(line)
	return nil
}

// logged collects lines.
type logged struct {
	mu    sync.Mutex // guards lines
	lines []record
}

func (l *logged) add(r record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, r)
}

// of returns the lines with this message, "" gives all; also those that are being
// written.
func (l *logged) of(msg string) []record {
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(l.lines), func(r record) bool { return msg != "" && r.msg != msg })
}

// aStoryToLog connects, exchanges, loses a connection, runs again elsewhere and
// finds a node gone: every tier has something to say.
func aStoryToLog(t *testing.T, w *world, cfg holdfast.Config) {
	w.net.SetLink("", "", simnet.Link{Latency: 5 * time.Millisecond})
	cfg.Picker = holdfast.Ordered()
	c := w.cluster(cfg)
	if err := c.Do(t.Context(), holdfast.Idempotent, say("secret one")); err != nil {
		t.Fatal(err)
	}
	w.servers[0].does(func(net.Conn, string) bool { return false })
	if err := c.Do(t.Context(), holdfast.Idempotent, say("secret two")); err != nil {
		t.Fatal(err)
	}
	w.servers[0].crash()
	if err := c.Do(t.Context(), holdfast.Idempotent, say("secret three")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
}

func TestLogTiers(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		var log logged
		aStoryToLog(t, w, holdfast.Config{Log: recorder(log.add).at(slog.LevelDebug)})

		dials := log.of("holdfast dial")
		if len(dials) != 3 {
			t.Fatalf("dials %v, want one to each node and one refused", dials)
		}
		if up := dials[0]; up.level != slog.LevelInfo || up.attrs["duration"].Duration() != 10*time.Millisecond {
			t.Errorf("connected is %v, want info with the 10 ms it took", up)
		}
		refused := slices.IndexFunc(dials, func(r record) bool { return r.attrs["class"].String() == "refused" })
		if refused < 0 || dials[refused].level != slog.LevelWarn {
			t.Errorf("no warning of the refused dial in %v", dials)
		}
		for _, msg := range []string{"holdfast state", "holdfast retry", "holdfast close", "holdfast read", "holdfast write"} {
			lines := log.of(msg)
			if len(lines) == 0 {
				t.Errorf("no line %q", msg)
			}
			for _, r := range lines {
				want := slog.LevelDebug
				switch {
				case msg == "holdfast retry", r.attrs["to"].String() == "backoff":
					want = slog.LevelWarn
				case msg == "holdfast state":
					want = slog.LevelInfo
				}
				if r.level != want {
					t.Errorf("%v, want %v", r, want)
				}
			}
		}
		if w := log.of("holdfast write")[0]; w.attrs["bytes"].Int64() != int64(len("secret one\n")) {
			t.Errorf("the first write is %v, want its 11 bytes", w)
		}
		if r := log.of("holdfast read")[0]; r.attrs["bytes"].Int64() != 11 || r.attrs["duration"].Duration() != 10*time.Millisecond {
			t.Errorf("the first read is %v, want 11 bytes after the round trip of 10 ms", r)
		}
	})
}

// Those who search logs rely on the keys: address, attempt, error code, latency,
// bytes; and no other that could carry a payload.
func TestLogKeys(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		var log logged
		aStoryToLog(t, w, holdfast.Config{Log: recorder(log.add).at(levelPayload)})
		keys := map[string][]string{ // what every line of a kind has, then what it may have
			"holdfast dial":    {"endpoint", "addr", "attempt", "duration", "class?", "err?"},
			"holdfast state":   {"endpoint", "addr", "from", "to", "cause", "class?", "err?"},
			"holdfast close":   {"endpoint", "addr", "cause", "duration?"},
			"holdfast retry":   {"endpoint", "addr", "attempt", "duration?", "class", "err"},
			"holdfast resolve": {"cause"},
			"holdfast read":    {"addr", "bytes", "duration", "class?", "err?"},
			"holdfast write":   {"addr", "bytes", "duration", "class?", "err?"},
		}
		for _, r := range log.of("") {
			allowed, ok := keys[r.msg]
			if !ok {
				t.Errorf("unknown line %v", r)
			}
			for _, key := range allowed {
				if _, has := r.attrs[key]; !has && !strings.HasSuffix(key, "?") {
					t.Errorf("%v has no %s", r, key)
				}
			}
			for key := range r.attrs {
				if !slices.Contains(allowed, key) && !slices.Contains(allowed, key+"?") {
					t.Errorf("%v has the key %s", r, key)
				}
			}
			if strings.Contains(r.String(), "secret") {
				t.Errorf("%v shows a payload", r)
			}
		}
		for msg := range maps.Keys(keys) {
			if len(log.of(msg)) == 0 {
				t.Errorf("the story has no line %q", msg)
			}
		}
	})
}

// What a peer sends in an error is cut, so that it cannot fill the disk.
func TestLogClipsThePeersText(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		var log logged
		long := strings.Repeat("x", 1<<20)
		c := w.cluster(holdfast.Config{
			Log: recorder(log.add).at(slog.LevelDebug),
			Handshake: func(context.Context, *holdfast.Conn) error {
				return holdfast.Permanent(fmt.Errorf("server says %s", long))
			},
		})
		c.Do(t.Context(), holdfast.Unsafe, say("x"))
		for _, r := range log.of("") {
			if n := len(r.String()); n > 2000 {
				t.Errorf("a line of %d bytes: %.100s…", n, r)
			}
		}
		if s := c.Stats().Nodes[0]; len(s.Err) > 600 {
			t.Errorf("Stats carries %d bytes of error", len(s.Err))
		}
	})
}

func TestPayloadIsLoggedOnlyWhenAsked(t *testing.T) {
	stars := func(p []byte) []byte { return []byte(strings.ReplaceAll(string(p), "secret", "***")) }
	for _, row := range []struct {
		name    string
		payload func([]byte) []byte
		level   slog.Level
		want    string // the payloads of the first exchange
	}{
		{"every level, but no Payload", nil, levelPayload, "[]"},
		{"Payload, but only debug", stars, slog.LevelDebug, "[]"},
		{"asked twice, and redacted", stars, levelPayload, "[write *** one\n read *** one\n]"},
	} {
		t.Run(row.name, func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				var log logged
				var asked atomic.Int32
				cfg := holdfast.Config{Log: recorder(log.add).at(row.level)}
				if row.payload != nil {
					cfg.Payload = func(p []byte) []byte { asked.Add(1); return row.payload(p) }
				}
				aStoryToLog(t, w, cfg)
				if row.level != levelPayload && asked.Load() > 0 {
					t.Errorf("payloads were prepared %d times for nobody", asked.Load())
				}
				got := []string{}
				for _, r := range log.of("holdfast payload") {
					if len(got) < 2 {
						got = append(got, r.attrs["op"].String()+" "+r.attrs["data"].String())
					}
					if r.level != levelPayload {
						t.Errorf("%v, want level %v", r, levelPayload)
					}
				}
				if fmt.Sprint(got) != row.want {
					t.Errorf("payloads %q, want %q", got, row.want)
				}
				for _, r := range log.of("") {
					if strings.Contains(r.String(), "secret") {
						t.Errorf("%v shows what was to be hidden", r)
					}
				}
			})
		})
	}
}

// A function that copies between connections goes the same way past the log.
func TestPayloadOfACopyIsLogged(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		var log logged
		c := w.cluster(holdfast.Config{Log: recorder(log.add).at(slog.LevelDebug)})
		if err := c.Do(t.Context(), holdfast.Unsafe, func(_ context.Context, conn *holdfast.Conn) error {
			if _, err := io.Copy(conn, strings.NewReader("copied\n")); err != nil {
				return err
			}
			_, err := io.CopyN(io.Discard, conn, 7)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if w, r := log.of("holdfast write"), log.of("holdfast read"); len(w) != 1 || len(r) != 1 || w[0].attrs["bytes"].Int64() != 7 {
			t.Errorf("a copy of 7 bytes both ways was logged as %v and %v", w, r)
		}
	})
}
