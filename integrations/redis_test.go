package integrations

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/holdfast-net/holdfast"
	"github.com/redis/go-redis/v9"
)

func startRedis(t *testing.T) *process {
	addr, port := freeAddr(t)
	return run(t, addr, nil, need(t, "redis-server"),
		"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", t.TempDir())
}

// go-redis keeps its own pool; the Cluster chooses where its connections lead.
func TestGoRedisFailsOver(t *testing.T) {
	a, b := startRedis(t), startRedis(t)
	c := clusterOf(t, holdfast.Config{Picker: holdfast.RoundRobin()}, a.addr, b.addr)
	rdb := redis.NewClient(&redis.Options{Addr: "cache:6379", Dialer: c.DialContext, PoolSize: 8, MinIdleConns: 4})
	defer rdb.Close()
	ctx := t.Context()

	for i := range 50 {
		if err := rdb.Set(ctx, fmt.Sprint("key", i), i, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	spread(t, c)

	a.kill()
	for i := range 50 {
		if err := rdb.Set(ctx, fmt.Sprint("key", i), i, 0).Err(); err != nil {
			t.Fatalf("operation %d after the kill: %v", i, err)
		}
	}
}
