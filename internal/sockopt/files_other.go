//go:build !unix

package sockopt

// MaxFiles is how many files this process may have open: there is no limit to ask for.
func MaxFiles() int { return unlimited }
