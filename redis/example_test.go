package redis_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/holdfast-net/holdfast/redis"
)

// A counter, a value that may not be there, and what the server has against it.
func Example() {
	ctx := context.Background()
	rdb, err := redis.Open("redis://localhost:6379")
	if err != nil {
		log.Fatal(err)
	}
	defer rdb.Close()

	visits, err := rdb.Do(ctx, "INCR", "visits").Int()
	if err != nil {
		log.Fatal(err)
	}
	name, err := rdb.Do(ctx, "GET", "name").Text()
	if errors.Is(err, redis.Nil) {
		name = "nobody"
	}
	fmt.Println(name, visits)
}

// Money moves, or it does not: the accounts are read under WATCH and written in one.
func ExampleClient_Tx() {
	ctx := context.Background()
	rdb, err := redis.Open("sentinel://10.0.0.1,10.0.0.2,10.0.0.3/bank")
	if err != nil {
		log.Fatal(err)
	}
	defer rdb.Close()

	_, err = rdb.Tx(ctx, []string{"alice", "bob"}, func(tx *redis.Tx) error {
		balance, err := tx.Do(ctx, "GET", "alice").Int()
		if err != nil {
			return err
		}
		if balance < 10 {
			return errors.New("alice has not enough")
		}
		tx.Add("DECRBY", "alice", 10)
		tx.Add("INCRBY", "bob", 10)
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
}

// Messages until the context ends, with a notice where some may be missing.
func ExampleSubscription_All() {
	ctx := context.Background()
	rdb, err := redis.Open("redis://localhost:6379")
	if err != nil {
		log.Fatal(err)
	}
	defer rdb.Close()
	news, err := rdb.Subscribe(ctx, "news")
	if err != nil {
		log.Fatal(err)
	}
	defer news.Close()
	for m, err := range news.All(ctx) {
		switch {
		case err != nil:
			log.Fatal(err)
		case m.Gap != nil:
			fmt.Println("something may be missing:", m.Gap)
		default:
			fmt.Println(m.Channel, m.Payload)
		}
	}
}
