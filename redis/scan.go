package redis

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
)

// Scan iterates over what SCAN, SSCAN, HSCAN or ZSCAN finds. The arguments are the
// command without its cursor: "SCAN", "MATCH", "user:*" or "HSCAN", "key", "COUNT", 100.
// HSCAN and ZSCAN give fields and values in turn. An error ends it. As Redis has it, an
// element may come twice, and none that was there all the time is missed.
func (r *Client) Scan(ctx context.Context, args ...any) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		at, err := cursorAt(args)
		if err != nil {
			yield("", err)
			return
		}
		for cursor := "0"; ; {
			page, next, err := r.page(ctx, slices.Insert(slices.Clone(args), at, any(cursor)))
			if err != nil {
				yield("", err)
				return
			}
			for _, element := range page {
				if !yield(element, nil) {
					return
				}
			}
			if cursor = next; cursor == "0" {
				return
			}
		}
	}
}

// cursorAt is where the cursor belongs: behind the key, where there is one.
func cursorAt(args []any) (int, error) {
	if len(args) > 0 {
		switch name, _ := args[0].(string); strings.ToUpper(name) {
		case "SCAN":
			return 1, nil
		case "SSCAN", "HSCAN", "ZSCAN":
			if len(args) > 1 {
				return 2, nil
			}
		}
	}
	return 0, fmt.Errorf("redis: Scan wants SCAN, or SSCAN, HSCAN or ZSCAN and a key, not %v", args)
}

func (r *Client) page(ctx context.Context, args []any) (elements []string, next string, err error) {
	parts, err := r.Do(ctx, args...).Values()
	if err != nil {
		return nil, "", err
	}
	if len(parts) != 2 {
		return nil, "", fmt.Errorf("redis: a page of a scan has %d parts", len(parts))
	}
	if next, err = parts[0].Text(); err == nil {
		elements, err = parts[1].Strings()
	}
	return elements, next, err
}
