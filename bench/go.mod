module github.com/holdfast-net/holdfast/bench

go 1.26.0

require (
	github.com/gomodule/redigo v1.9.3
	github.com/holdfast-net/holdfast v0.0.0-00010101000000-000000000000
	github.com/jackc/puddle/v2 v2.2.3
	github.com/redis/go-redis/v9 v9.23.0
	github.com/redis/rueidis v1.0.79
	golang.org/x/sys v0.49.0
)

require (
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	go.uber.org/atomic v1.12.0 // indirect
	golang.org/x/net v0.62.0 // indirect
	golang.org/x/sync v0.1.0 // indirect
)

replace github.com/holdfast-net/holdfast => ..
