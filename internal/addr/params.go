package addr

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// params reads key=value pairs. A key that stands twice is refused, since readers
// disagree which one counts.
func params(query string) (map[string]string, error) {
	all := map[string]string{}
	for pair := range strings.SplitSeq(query, "&") {
		key, value, err := param(pair)
		if err != nil {
			return nil, err
		}
		if _, double := all[key]; double {
			return nil, fmt.Errorf("parameter %s stands twice", quote(key))
		}
		all[key] = value
	}
	return all, nil
}

func param(pair string) (key, value string, err error) {
	key, value, ok := strings.Cut(pair, "=")
	if !ok || key == "" || strings.ContainsFunc(key, func(r rune) bool { return !isWord(r) && r != '.' }) {
		return "", "", fmt.Errorf("parameter %s: want key=value", quote(pair))
	}
	if strings.ContainsAny(value, "?;") {
		return "", "", fmt.Errorf("parameter %s: ? is %%3F and ; is %%3B in a value; parameters are parted by &", quote(key))
	}
	value, err = url.PathUnescape(value)
	if err != nil {
		return "", "", fmt.Errorf("parameter %s: its value has a %% that is no escape; itself it is %%25", quote(key))
	}
	if strings.ContainsFunc(value, func(r rune) bool { return !printable(r) }) {
		return "", "", fmt.Errorf("parameter %s: its value has a character that does not print", quote(key))
	}
	return key, value, nil
}

// escaper writes a parameter's value; what it leaves alone stands for itself.
var escaper = strings.NewReplacer("%", "%25", "&", "%26", "#", "%23", "@", "%40", "?", "%3F", ";", "%3B", " ", "%20")

// String returns the address in the form that Parse reads as the same, parameters
// in the order of their keys.
func (a Address) String() string {
	var b strings.Builder
	b.WriteString(a.Network + ":")
	if a.Network != "unix" {
		b.WriteString("//")
	}
	b.WriteString(a.Addr)
	sep := "?"
	for _, key := range slices.Sorted(maps.Keys(a.Params)) {
		b.WriteString(sep + key + "=" + escaper.Replace(a.Params[key]))
		sep = "&"
	}
	return b.String()
}

// redact takes out what could be a password, in case someone pastes a URL.
func redact(s string) string {
	at := strings.LastIndexByte(s, '@')
	if at < 0 || strings.HasPrefix(s, "unix:") {
		return s
	}
	if scheme, _, ok := strings.Cut(s[:at], "://"); ok {
		return scheme + "://xxxxx" + s[at:]
	}
	return "xxxxx" + s[at:]
}

// quote makes a text of unknown origin fit for a message.
func quote(s string) string {
	const limit = 64
	if len(s) > limit {
		return strconv.QuoteToASCII(s[:limit]) + "…"
	}
	return strconv.QuoteToASCII(s)
}
