package redis_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/holdfast-net/holdfast/redis"
)

// A server of old, or a proxy, that has never heard of RESP3 is spoken to in RESP2.
func TestHelloFallsBack(t *testing.T) {
	for name, args := range map[string][]string{
		"no HELLO":           {"--rename-command", "HELLO", ""},
		"no HELLO, password": {"--rename-command", "HELLO", "", "--requirepass", "secret"},
	} {
		t.Run(name, func(t *testing.T) {
			s := redis.StartServer(t, args...)
			cfg := redis.Config{Name: "me", DB: 2}
			if len(args) > 3 {
				cfg.Credentials = password("", "secret")
			}
			r := clientOf(t, cfg, s.Addr)
			if err := r.Do(t.Context(), "HSET", "h", "a", 1).Err(); err != nil {
				t.Fatal(err)
			}
			if v := r.Do(t.Context(), "HGETALL", "h"); v.Kind() != redis.KindArray {
				t.Errorf("%v: want RESP2", v)
			}
			if list, err := r.Do(t.Context(), "CLIENT", "LIST").Text(); err != nil || !strings.Contains(list, "name=me") || !strings.Contains(list, "db=2") {
				t.Errorf("%q, %v", list, err)
			}
		})
	}
}

func ExampleOpen() {
	if _, err := redis.Open("redis://:secret@localhost?colour=blue"); err != nil {
		fmt.Println(err)
	}
	// Output: redis: redis://:xxxxx@localhost?colour=blue: there is no parameter "colour"
}
