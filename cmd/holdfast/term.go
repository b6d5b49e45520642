package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// paint colours text where that is wanted. Colour only accompanies words.
type paint bool

const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
)

func (on paint) text(color, s string) string {
	if !on || color == "" {
		return s
	}
	return "\x1b[" + color + "m" + s + "\x1b[0m"
}

// paintOn says whether to colour what goes to f: see no-color.org for NO_COLOR.
func (p *program) paintOn(f *os.File) paint {
	switch p.color {
	case "always":
		return true
	case "never":
		return false
	}
	return paint(canMove(f) && os.Getenv("NO_COLOR") == "")
}

// canMove reports whether f is a terminal that understands escape sequences. Of
// those on Windows, Windows Terminal is known to.
func canMove(f *os.File) bool {
	kind := os.Getenv("TERM")
	if runtime.GOOS == "windows" {
		kind = os.Getenv("WT_SESSION")
	}
	return kind != "" && kind != "dumb" && term.IsTerminal(int(f.Fd()))
}

// canvas is a part of a terminal that is drawn again and again.
type canvas struct {
	out   *os.File
	drawn int // lines that are the canvas's
}

// draw replaces what it drew before, in one write so that nothing flickers.
func (c *canvas) draw(content func(width, height int) []string) {
	width, height, err := term.GetSize(int(c.out.Fd()))
	if err != nil || width <= 0 || height <= 0 {
		width, height = 80, 24
	}
	lines := content(width-1, height-1)
	var b strings.Builder
	if c.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", c.drawn)
	}
	for _, line := range lines {
		b.WriteString("\r" + clip(line, width-1) + "\x1b[K\n")
	}
	b.WriteString("\x1b[J")
	c.out.WriteString(b.String())
	c.drawn = len(lines)
}

// clip cuts a line to a width. Escape sequences take no room and are all kept, so
// that a colour begun is a colour ended.
func clip(line string, width int) string {
	var b strings.Builder
	escape, used := false, 0
	for _, r := range line {
		switch {
		case r == '\x1b':
			escape = true
		case escape:
			escape = r != 'm'
		case used == width:
			continue
		default:
			used++
		}
		b.WriteRune(r)
	}
	return b.String()
}

// pad fills s with spaces up to a width in characters.
func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(s)))
}

func padLeft(s string, width int) string {
	return strings.Repeat(" ", max(0, width-utf8.RuneCountInString(s))) + s
}

// millis writes a duration the way tables here do, "–" when there is none.
func millis(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	switch {
	case d <= 0:
		return "–"
	case ms < 10:
		return fmt.Sprintf("%.2f ms", ms)
	case ms < 100:
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}

// count writes a number with commas between thousands.
func count[T int | uint64](v T) string {
	s := strconv.FormatUint(uint64(v), 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// asSeconds is a time of the scenario as JSON carries it.
func asSeconds(d time.Duration) float64 { return float64(d.Milliseconds()) / 1000 }

// asMillis is a duration as JSON carries it: milliseconds, to the microsecond.
func asMillis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
