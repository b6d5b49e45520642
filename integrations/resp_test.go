package integrations

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-net/holdfast"
	ours "github.com/holdfast-net/holdfast/redis"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

// asked are commands whose answers three clients must understand alike. What has no
// order is compared without.
var asked = [][]any{
	{"SET", "s", "hello\r\n\x00world"}, {"GET", "s"}, {"GET", "none"}, {"STRLEN", "s"}, {"APPEND", "s", "!"}, {"GETRANGE", "s", 0, 4},
	{"SET", "s", "x", "NX"}, {"SETNX", "t", 1}, {"INCRBY", "t", 41}, {"INCRBYFLOAT", "t", 0.5}, {"DECR", "s"}, {"MGET", "s", "none", "t"},
	{"RPUSH", "l", "a", "", "c"}, {"LRANGE", "l", 0, -1}, {"LPOP", "none"}, {"LPOP", "l", 2}, {"LINDEX", "l", 99}, {"LRANGE", "none", 0, -1},
	{"HSET", "h", "f", 1, "g", "two"}, {"HGETALL", "h"}, {"HGETALL", "none"}, {"HGET", "h", "none"}, {"HMGET", "h", "f", "none"}, {"HRANDFIELD", "none"},
	{"SADD", "set", "a", "b", "c"}, {"SMEMBERS", "set"}, {"SISMEMBER", "set", "a"}, {"SMISMEMBER", "set", "a", "z"}, {"SPOP", "none"},
	{"ZADD", "z", 1.5, "one", "-inf", "low", "+inf", "high"}, {"ZRANGE", "z", 0, -1, "WITHSCORES"}, {"ZSCORE", "z", "one"}, {"ZSCORE", "z", "low"}, {"ZSCORE", "z", "none"},
	{"ZRANGEBYSCORE", "z", "-inf", "(2"}, {"ZPOPMIN", "z"}, {"ZMSCORE", "z", "one", "none"},
	{"XADD", "x", "1-1", "k", "v", "k2", "v2"}, {"XADD", "x", "1-2", "k", "v"}, {"XRANGE", "x", "-", "+"}, {"XREAD", "COUNT", 1, "STREAMS", "x", "0"}, {"XLEN", "x"},
	{"GEOADD", "g", 13.361389, 38.115556, "Palermo"}, {"GEOPOS", "g", "Palermo", "none"}, {"GEODIST", "g", "Palermo", "none"},
	{"EVAL", "return {1, 'two', {3, {err='four'}}, false, true}", 0}, {"EVAL", "return redis.error_reply('MY own')", 0}, {"EVAL", "return {}", 0},
	{"TYPE", "h"}, {"OBJECT", "ENCODING", "t"}, {"EXISTS", "s", "none"}, {"EXPIRE", "s", 100}, {"PERSIST", "none"}, {"DEL", "s", "none"}, {"RANDOMKEY", "x"},
	{"NOSUCHCOMMAND"}, {"GET"}, {"LPUSH", "h", 1}, {"SINTER", "set", "none"}, {"CONFIG", "GET", "maxmemory"}, {"ECHO", ""}, {"PING", "p"},
	{"BITFIELD", "b", "SET", "u8", 0, 255, "GET", "u8", 0, "OVERFLOW", "FAIL", "INCRBY", "u2", 100, 3}, {"SORT", "set", "ALPHA"}, {"LCS", "s", "t"},
}

// It must show 3: the same commands through ours, go-redis and rueidis, in both
// protocols, are answered the same.
func TestRedisClientsAgree(t *testing.T) {
	for _, protocol := range []int{2, 3} {
		t.Run(fmt.Sprint("RESP", protocol), func(t *testing.T) {
			got := map[string][]string{}
			for name, connect := range map[string]func(*testing.T, string, int) func([]any) string{"ours": byOurs, "go-redis": byGoRedis, "rueidis": byRueidis} {
				s := startRedis(t)
				do := connect(t, s.addr, protocol)
				for _, args := range asked {
					text := do(args)
					if args[0] == "SMEMBERS" { // RESP2 has no sets: the order means nothing
						words := strings.Fields(strings.Trim(text, "[]"))
						slices.Sort(words)
						text = fmt.Sprint(words)
					}
					got[name] = append(got[name], text)
				}
			}
			for i, args := range asked {
				for _, name := range []string{"go-redis", "rueidis"} {
					if ours, theirs := got["ours"][i], got[name][i]; ours != theirs {
						t.Errorf("%q:\n  ours     %s\n  %-8s %s", args, ours, name, theirs)
					}
				}
			}
		})
	}
}

func byOurs(t *testing.T, addr string, protocol int) func([]any) string {
	c := clusterOf(t, holdfast.Config{}, addr)
	r := ours.New(c, ours.Config{Protocol: protocol})
	t.Cleanup(func() { r.Close() })
	return func(args []any) string {
		return ourText(r.Do(t.Context(), args...))
	}
}

func ourText(v ours.Value) string {
	switch v.Kind() {
	case ours.KindNull:
		return "nil"
	case ours.KindError:
		return refusal(strings.TrimPrefix(v.Err().Error(), "redis: "))
	case ours.KindArray, ours.KindMap, ours.KindSet:
		elems, _ := v.Values()
		var parts []string
		for _, e := range elems {
			parts = append(parts, ourText(e))
		}
		return list(parts, v.Kind() == ours.KindMap, v.Kind() == ours.KindSet)
	}
	text, err := v.Text()
	if err != nil {
		return "unconvertible " + err.Error()
	}
	return scalar(text)
}

// refusal is an error without the code that some clients take off.
func refusal(text string) string {
	return "error " + strings.TrimSpace(strings.TrimPrefix(text, "ERR "))
}

// scalar makes 1 and 1.0 the same: some clients turn numbers into Go's.
func scalar(s string) string {
	if f, err := strconv.ParseFloat(s, 64); err == nil {
		return strconv.FormatFloat(f, 'g', 12, 64)
	}
	return strconv.Quote(s)
}

// list writes elements; those of a map in the order of their keys, of a set sorted.
func list(parts []string, isMap, isSet bool) string {
	switch {
	case isMap:
		var pairs []string
		for i := 0; i+1 < len(parts); i += 2 {
			pairs = append(pairs, parts[i]+" "+parts[i+1])
		}
		sort.Strings(pairs)
		parts = pairs
	case isSet:
		slices.Sort(parts)
	}
	return "[" + strings.Join(parts, " ") + "]"
}

func byGoRedis(t *testing.T, addr string, protocol int) func([]any) string {
	c := redis.NewClient(&redis.Options{Addr: addr, Protocol: protocol, MaxRetries: -1})
	t.Cleanup(func() { c.Close() })
	return func(args []any) string {
		v, err := c.Do(context.Background(), args...).Result()
		if err != nil && !errors.Is(err, redis.Nil) {
			return refusal(err.Error())
		}
		return goText(v)
	}
}

func goText(v any) string {
	switch v := v.(type) {
	case nil:
		return "nil"
	case error:
		return refusal(v.Error())
	case string:
		return scalar(v)
	case int64:
		return scalar(strconv.FormatInt(v, 10))
	case float64:
		return scalar(strconv.FormatFloat(v, 'g', -1, 64))
	case bool:
		return scalar(map[bool]string{true: "1", false: "0"}[v])
	case []any:
		var parts []string
		for _, e := range v {
			parts = append(parts, goText(e))
		}
		return list(parts, false, false)
	case map[any]any:
		var parts []string
		for k, e := range v {
			parts = append(parts, goText(k), goText(e))
		}
		return list(parts, true, false)
	}
	return fmt.Sprintf("%T", v)
}

func byRueidis(t *testing.T, addr string, protocol int) func([]any) string {
	c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, DisableCache: true, AlwaysRESP2: protocol == 2, DisableRetry: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return func(args []any) string {
		var words []string
		for _, a := range args {
			words = append(words, fmt.Sprint(a))
		}
		r := c.Do(context.Background(), c.B().Arbitrary(words...).Build())
		if e, ok := rueidis.IsRedisErr(r.Error()); ok && !e.IsNil() {
			return refusal(e.Error())
		}
		m, err := r.ToMessage()
		if err != nil && !rueidis.IsRedisNil(err) {
			return "transport " + err.Error()
		}
		return rueidisText(m)
	}
}

func rueidisText(m rueidis.RedisMessage) string {
	switch {
	case m.IsNil():
		return "nil"
	case m.Error() != nil:
		return refusal(m.Error().Error())
	case m.IsMap():
		all, _ := m.AsMap()
		var parts []string
		for k, e := range all {
			parts = append(parts, scalar(k), rueidisText(e))
		}
		return list(parts, true, false)
	case m.IsArray():
		all, _ := m.ToArray()
		var parts []string
		for _, e := range all {
			parts = append(parts, rueidisText(e))
		}
		return list(parts, false, false)
	case m.IsInt64():
		n, _ := m.ToInt64()
		return scalar(strconv.FormatInt(n, 10))
	case m.IsFloat64():
		f, _ := m.ToFloat64()
		return scalar(strconv.FormatFloat(f, 'g', -1, 64))
	case m.IsBool():
		b, _ := m.ToBool()
		return scalar(map[bool]string{true: "1", false: "0"}[b])
	}
	s, err := m.ToString()
	if err != nil {
		return "unconvertible " + err.Error()
	}
	return scalar(s)
}
