package health

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
)

type prober interface {
	Probe(ctx context.Context, conn net.Conn) error
}

// ParseProbe reads a probe's text form:
//
//	connect                         nil: connecting is proof enough
//	tls [DAYS]                      [TLS], with MinDays
//	http [PATH [STATUS[-STATUS]]]   [HTTP]
//	redis [ROLE]                    [Redis]
//	postgres [USER [DATABASE]]      [Postgres]
//	send TEXT expect TEXT …         [Exchange]: send, expect, match, in any order and number
//	udp send TEXT [expect TEXT]     [UDP]
//
// TEXT is a word, or a string in double quotes, with the escapes of Go: \n, \r, \x00. sendhex
// and expecthex take bytes in hexadecimal, match takes a regular expression (RE2) in place of
// TEXT: a word as it stands, or a string in double quotes or backquotes.
func ParseProbe(text string) (func(ctx context.Context, conn net.Conn) error, error) {
	p, _, err := parse(text)
	if err != nil || p == nil {
		return nil, err
	}
	return p.Probe, nil
}

// parse returns the probe, nil for connecting, and the name of its kind.
func parse(text string) (p prober, kind string, err error) {
	words, err := split(text)
	if err == nil && len(words) == 0 {
		err = errors.New("it is empty")
	}
	if err == nil {
		p, kind, err = parseWords(words)
	}
	if err != nil {
		return nil, "", fmt.Errorf("health: probe %q: %w", text, err)
	}
	return p, kind, nil
}

func parseWords(words []string) (p prober, kind string, err error) {
	kind, args := words[0], words[1:]
	most := 0
	switch kind {
	case "connect":
	case "tls":
		p, err = parseTLS(args)
		most = 1
	case "http":
		p, err = parseHTTP(args)
		most = 2
	case "redis":
		p, err = parseRedis(args)
		most = 1
	case "postgres":
		p, most = Postgres{User: at(args, 0), Database: at(args, 1)}, 2
	case "udp":
		p, err = parseUDP(args)
		most = 4
	case "send", "sendhex", "expect", "expecthex", "match":
		p, err = parseSteps(words)
		return p, "exchange", err
	default:
		return nil, "", errors.New("want connect, tls, http, redis, postgres, udp, or send and expect")
	}
	if err == nil && len(args) > most {
		err = fmt.Errorf("%s takes at most %d words, got %d", kind, most, len(args))
	}
	return p, kind, err
}

func at(args []string, i int) string {
	if i < len(args) {
		return args[i]
	}
	return ""
}

func parseTLS(args []string) (prober, error) {
	if len(args) == 0 {
		return TLS{}, nil
	}
	days, err := strconv.Atoi(args[0])
	if err != nil || days < 1 || days > 3650 {
		return nil, fmt.Errorf("%q: want a number of days", args[0])
	}
	return TLS{MinDays: days}, nil
}

func parseHTTP(args []string) (prober, error) {
	h := HTTP{Path: at(args, 0)}
	if h.Path != "" && (h.Path[0] != '/' || !isToken(h.Path)) {
		return nil, fmt.Errorf("path %q: want one from / on, without spaces", h.Path)
	}
	if len(args) < 2 {
		return h, nil
	}
	from, to, isRange := strings.Cut(args[1], "-")
	if !isRange {
		to = from
	}
	var errs [2]error
	h.From, errs[0] = strconv.Atoi(from)
	h.To, errs[1] = strconv.Atoi(to)
	if errors.Join(errs[:]...) != nil || h.From < 100 || h.To > 999 || h.From > h.To {
		return nil, fmt.Errorf("status %q: want 200 or 200-399", args[1])
	}
	return h, nil
}

func parseRedis(args []string) (prober, error) {
	switch role := at(args, 0); role {
	case "", "master", "slave", "sentinel":
		return Redis{Role: role}, nil
	default:
		return nil, fmt.Errorf("role %q: want master, slave or sentinel", role)
	}
}

func parseUDP(args []string) (prober, error) {
	steps, err := parseSteps(args)
	if err != nil {
		return nil, err
	}
	if len(steps) != 1 || len(steps[0].Send) == 0 {
		return nil, errors.New("udp wants one thing to send, and at most one to expect")
	}
	return UDP(steps[0]), nil
}

// parseSteps reads pairs of words. What is expected joins what was sent before it.
func parseSteps(words []string) (steps Exchange, err error) {
	for i := 0; i < len(words); i += 2 {
		if i+1 == len(words) {
			return nil, fmt.Errorf("%s wants something after it", words[i])
		}
		s, err := parseStep(words[i], words[i+1])
		if err != nil {
			return nil, err
		}
		last := len(steps) - 1
		if s.Send == nil && last >= 0 && steps[last].Expect == nil && steps[last].Match == nil {
			s.Send = steps[last].Send
			steps[last] = s
		} else {
			steps = append(steps, s)
		}
	}
	return steps, nil
}

func parseStep(verb, word string) (s Step, err error) {
	switch verb {
	case "send":
		s.Send, err = unescape(word)
	case "expect":
		s.Expect, err = unescape(word)
	case "sendhex":
		s.Send, err = hex.DecodeString(word)
	case "expecthex":
		s.Expect, err = hex.DecodeString(word)
	case "match":
		s.Match, err = pattern(word)
	default:
		return s, fmt.Errorf("%q: want send, sendhex, expect, expecthex or match", verb)
	}
	if err == nil && len(s.Send) == 0 && len(s.Expect) == 0 && s.Match == nil {
		err = errors.New("it is empty")
	}
	if err != nil {
		return s, fmt.Errorf("%s %s: %w", verb, word, err)
	}
	return s, nil
}

// unescape reads TEXT.
func unescape(word string) ([]byte, error) {
	if !isQuoted(word) {
		word = `"` + strings.ReplaceAll(word, `"`, `\"`) + `"`
	}
	s, err := strconv.Unquote(word)
	return []byte(s), err
}

func pattern(word string) (*regexp.Regexp, error) {
	if isQuoted(word) {
		var err error
		if word, err = strconv.Unquote(word); err != nil {
			return nil, err
		}
	}
	return regexp.Compile(word)
}

func isQuoted(word string) bool { return word != "" && (word[0] == '"' || word[0] == '`') }

// split cuts a text at its spaces, but not within quotes, which the words keep.
func split(text string) (words []string, err error) {
	for text = strings.TrimLeft(text, " \t"); text != ""; text = strings.TrimLeft(text, " \t") {
		word := text
		if isQuoted(text) {
			if word, err = strconv.QuotedPrefix(text); err != nil {
				return nil, fmt.Errorf("quotes that do not end: %s", text)
			}
		} else if i := strings.IndexAny(text, " \t"); i >= 0 {
			word = text[:i]
		}
		words = append(words, word)
		text = text[len(word):]
	}
	return words, nil
}
