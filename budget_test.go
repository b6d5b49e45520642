package holdfast_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
)

// request is an operation that its server declines, so that every further attempt
// is paid for; declined false makes it a success.
func request(declined bool) func(context.Context, *holdfast.Conn) error {
	return func(_ context.Context, conn *holdfast.Conn) error {
		if _, err := io.WriteString(conn, "x\n"); err != nil {
			return err
		}
		if declined {
			return holdfast.Unprocessed(errBroken)
		}
		return nil
	}
}

// Retries are a fifth of the requests of the last ten seconds and ten a second
// besides, counted together over that window.
func TestRetryBudgetWindow(t *testing.T) {
	// spender is a cluster whose retries cost nothing but budget.
	spender := func(w *world, budget *holdfast.Budget) *holdfast.Cluster {
		return w.cluster(holdfast.Config{
			Retry:   holdfast.Retry{Attempts: 2, Budget: budget, Backoff: holdfast.Backoff{Base: -1}},
			Outlier: holdfast.Outlier{Consecutive: -1},
		})
	}
	// run makes n requests at once and returns how many were tried again.
	run := func(t *testing.T, c *holdfast.Cluster, n int, declined bool) int {
		t.Helper()
		before := c.Stats()
		for range n {
			err := c.Do(t.Context(), holdfast.Unsafe, request(declined))
			if declined && !errors.Is(err, errBroken) {
				t.Fatalf("the error of the request is gone: %v", err)
			}
		}
		now := c.Stats()
		granted, denied := int(now.Retries-before.Retries), int(now.BudgetDenied-before.BudgetDenied)
		if declined && granted+denied != n {
			t.Errorf("of %d requests %d were tried again and %d refused", n, granted, denied)
		}
		return granted
	}
	expect := func(t *testing.T, what string, got, want int) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %d retries, want %d", what, got, want)
		}
	}

	t.Run("a fifth and a hundred per window", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := spender(w, nil)
			expect(t, "250 requests that all fail", run(t, c, 250, true), 100+250/5)
			err := c.Do(t.Context(), holdfast.Unsafe, request(true))
			for range 4 {
				if err = c.Do(t.Context(), holdfast.Unsafe, request(true)); errors.Is(err, holdfast.ErrRetryBudget) {
					break
				}
			}
			if !errors.Is(err, holdfast.ErrRetryBudget) || !errors.Is(err, errBroken) {
				t.Errorf("the budget is spent, and the error is %v", err)
			}

			time.Sleep(8 * time.Second)
			expect(t, "eight seconds later", run(t, c, 10, true), 10/5)
			time.Sleep(10100 * time.Millisecond)
			expect(t, "when all of it is forgotten", run(t, c, 250, true), 100+250/5)
		})
	})

	t.Run("credit lives ten seconds", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := spender(w, nil)
			expect(t, "requests that do well", run(t, c, 500, false), 0)
			time.Sleep(8900 * time.Millisecond)
			expect(t, "nine seconds after 500 good ones", run(t, c, 400, true), 100+500/5+400/5)

			c = spender(w, nil)
			run(t, c, 500, false)
			time.Sleep(10100 * time.Millisecond)
			expect(t, "ten seconds after them", run(t, c, 400, true), 100+400/5)
		})
	})

	t.Run("numbers of one's own", func(t *testing.T) {
		for _, own := range []struct {
			name   string
			budget *holdfast.Budget
			want   int // of 300
		}{
			{"half and no reserve", &holdfast.Budget{Percent: 50, PerSecond: -1}, 150},
			{"a fifth and two a second", &holdfast.Budget{PerSecond: 2}, 20 + 60},
			{"no limit", &holdfast.Budget{Percent: -1}, 300},
		} {
			inWorld(t, 1, func(t *testing.T, w *world) {
				expect(t, own.name, run(t, spender(w, own.budget), 300, true), own.want)
			})
		}
	})

	t.Run("shared by two clusters", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			shared := &holdfast.Budget{}
			one, other := spender(w, shared), spender(w, shared)
			got := run(t, one, 250, true)
			expect(t, "250 requests each", got+run(t, other, 250, true), 100+500/5)
		})
	})

	// A minute in which everything fails, at twenty requests a second.
	t.Run("a bad minute", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := spender(w, nil)
			retries := 0
			for range 120 {
				retries += run(t, c, 10, true)
				time.Sleep(500 * time.Millisecond)
			}
			if least, most := 1200/5+60*10, 1200/5+70*10; retries < least || retries > most {
				t.Errorf("1200 requests in a minute were tried again %d times, want %d to %d", retries, least, most)
			}
		})
	})
}
