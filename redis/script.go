package redis

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
)

// Script is a Lua script. It is immutable and safe for concurrent use.
type Script struct{ source, sha string }

// NewScript returns the script with this source.
func NewScript(source string) *Script {
	sum := sha1.Sum([]byte(source))
	return &Script{source, hex.EncodeToString(sum[:])}
}

// Eval runs a script: by its digest, and by its source where the server does not know
// it yet.
func (r *Client) Eval(ctx context.Context, s *Script, keys []string, args ...any) Value {
	rep := r.Do(ctx, s.command("EVALSHA", s.sha, keys, args)...)
	if e, ok := errors.AsType[*Error](rep.Err()); ok && e.Code == "NOSCRIPT" {
		return r.Do(ctx, s.command("EVAL", s.source, keys, args)...)
	}
	return rep
}

// Eval appends the running of a script. In a batch the source itself is sent: what
// comes behind must not overtake it.
func (b *Batch) Eval(s *Script, keys []string, args ...any) {
	b.Add(s.command("EVAL", s.source, keys, args)...)
}

func (s *Script) command(verb, what string, keys []string, args []any) []any {
	all := make([]any, 0, 3+len(keys)+len(args))
	all = append(all, verb, what, len(keys))
	for _, k := range keys {
		all = append(all, k)
	}
	return append(all, args...)
}
