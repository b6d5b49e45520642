package holdfast

import (
	"math/rand/v2"
	"time"
)

// epoch makes times small integers on the monotonic clock, so that a jump of the
// wall clock changes nothing.
var epoch = time.Now()

// clockBias keeps clock positive where a test's clock stands before epoch, so
// that 0 can mean "no time".
const clockBias = 100 * 365 * 24 * time.Hour

// clock is now, as all timestamps in here are kept.
func clock() time.Duration { return time.Since(epoch) + clockBias }

// jitter spreads d by ±share.
func jitter(d time.Duration, share float64) time.Duration {
	return time.Duration(float64(d) * (1 + share*(2*rand.Float64()-1)))
}
