package main

import (
	"slices"
	"testing"
	"time"
)

func TestScenarioKeepsTwoServersGood(t *testing.T) {
	for seed := uint64(1); seed <= 200; seed++ {
		for _, d := range []time.Duration{shortestDemo, 4 * time.Second, 12 * time.Second, 20 * time.Second, time.Minute, longestDemo} {
			story := newScenario(seed, d)
			checkStory(t, story, d)
			if t.Failed() {
				t.Fatalf("seed %d, %v: %+v", seed, d, story)
			}
		}
	}
}

// checkStory plays a story as the fleet does and holds what the demo promises.
func checkStory(t *testing.T, story []phase, d time.Duration) {
	t.Helper()
	bad := map[int]bool{}
	faults, servers := map[fault]bool{}, map[int]bool{}
	at := time.Duration(0)
	before := phase{fault: healthy}
	for _, ph := range story {
		if ph.start != at || ph.end <= ph.start {
			t.Errorf("%s lasts from %v to %v, after %v", ph.name(), ph.start, ph.end, at)
		}
		at = ph.end
		if before.fault != healthy {
			delete(bad, before.server)
		}
		if ph.fault != healthy {
			bad[ph.server] = true
			faults[ph.fault], servers[ph.server] = true, true
		}
		if len(bad) > 1 {
			t.Errorf("two are bad in %s", ph.name())
		}
		if (ph.fault == slowed) != (ph.delay > 0) || ph.delay >= perTry {
			t.Errorf("%s answers %v late", ph.name(), ph.delay)
		}
		before = ph
	}
	if last := story[len(story)-1]; last.fault != healthy || last.end-last.start < time.Second || at != d {
		t.Errorf("ends at %v of %v with %s for %v", at, d, last.name(), last.end-last.start)
	}
	if story[0].fault != healthy || len(faults) != len(allFaults()) || len(servers) != 3 {
		t.Errorf("begins %s, has faults %v of servers %v", story[0].name(), faults, servers)
	}
}

func TestScenarioIsItsSeeds(t *testing.T) {
	different := false
	for seed := uint64(1); seed <= 20; seed++ {
		story := newScenario(seed, 20*time.Second)
		if !slices.Equal(story, newScenario(seed, 20*time.Second)) {
			t.Errorf("seed %d gives two scenarios", seed)
		}
		different = different || !slices.Equal(story, newScenario(seed+1, 20*time.Second))
	}
	if !different {
		t.Error("every seed gives the same scenario")
	}
}
