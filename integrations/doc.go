// Package integrations runs Holdfast under drivers people use, against real
// servers, and beside other implementations as oracles. It holds tests, and programs that
// are examples and are tested here too: what they depend on stays out of the library's
// go.mod.
//
// A test says which programs of the machine it needs. Where one is missing the
// test skips and says so; with CI=true that is a failure.
package integrations
