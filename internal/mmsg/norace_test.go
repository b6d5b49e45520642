//go:build !race

package mmsg_test

const raceDetector = false
