package redis

import (
	"errors"
	"reflect"
	"strings"

	"github.com/holdfast-net/holdfast"
)

// kind is what matters about a command before it is sent.
type kind uint8

const (
	reads  kind = 1 << iota // it changes nothing, so that it may run twice
	waits                   // it blocks the connection, for as long as it likes
	states                  // it changes the state of the connection
)

func (k kind) blocks() bool       { return k&waits != 0 }
func (k kind) changesState() bool { return k&states != 0 }

func (k kind) safety() holdfast.Safety {
	if k&reads != 0 {
		return holdfast.Idempotent
	}
	return holdfast.Unsafe
}

// commands are those that are not like most. What reads is what Redis 7.0 itself flags
// as "readonly", and a few that do nothing at all; TestReadOnlyCommands asks a server.
var commands = map[string]kind{}

func init() {
	for k, names := range map[kind]string{
		reads: `BITCOUNT BITFIELD_RO BITPOS DBSIZE DUMP EVALSHA_RO EVAL_RO EXISTS EXPIRETIME FCALL_RO GEODIST GEOHASH
			GEOPOS GEORADIUSBYMEMBER_RO GEORADIUS_RO GEOSEARCH GET GETBIT GETRANGE HEXISTS HGET HGETALL HKEYS HLEN HMGET
			HRANDFIELD HSCAN HSTRLEN HVALS KEYS LCS LINDEX LLEN LOLWUT LPOS LRANGE MGET PEXPIRETIME PFCOUNT PTTL RANDOMKEY
			SCAN SCARD SDIFF SINTER SINTERCARD SISMEMBER SMEMBERS SMISMEMBER SORT_RO SRANDMEMBER SSCAN STRLEN SUBSTR SUNION
			TOUCH TTL TYPE XLEN XPENDING XRANGE XREVRANGE ZCARD ZCOUNT ZDIFF ZINTER ZINTERCARD ZLEXCOUNT ZMSCORE ZRANDMEMBER
			ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANK ZREVRANGE ZREVRANGEBYLEX ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE ZUNION
			PING ECHO TIME INFO ROLE LASTSAVE`,
		waits:          `BLMOVE BLMPOP BLPOP BRPOP BRPOPLPUSH BZMPOP BZPOPMAX BZPOPMIN WAIT WAITAOF SAVE SHUTDOWN`,
		waits | states: `MONITOR SYNC PSYNC`,
		states: `SELECT AUTH HELLO MULTI EXEC DISCARD WATCH UNWATCH SUBSCRIBE UNSUBSCRIBE PSUBSCRIBE PUNSUBSCRIBE SSUBSCRIBE
			SUNSUBSCRIBE RESET QUIT READONLY READWRITE ASKING`,
	} {
		for name := range strings.FieldsSeq(names) {
			commands[name] = k
		}
	}
}

// kindOf looks at a command, and at the words that change what it is.
func kindOf(args []any) kind {
	var name, word [24]byte
	switch n := upper(&name, args, 0); string(name[:n]) {
	case "CLIENT":
		n := upper(&word, args, 1)
		switch string(word[:n]) {
		case "REPLY", "TRACKING", "CACHING", "SETNAME", "SETINFO", "NO-EVICT", "NO-TOUCH":
			return states
		}
		return 0
	case "DEBUG":
		if n := upper(&word, args, 1); string(word[:n]) == "SLEEP" {
			return waits
		}
		return 0
	case "XREAD", "XREADGROUP":
		for i := 1; i < len(args); i++ {
			n := upper(&word, args, i)
			switch string(word[:n]) {
			case "BLOCK":
				return waits
			case "STREAMS":
				i = len(args)
			}
		}
		if n == len("XREAD") {
			return reads
		}
		return 0
	default:
		return commands[string(name[:n])]
	}
}

// upper puts a word in capitals into buf; longer ones are none that we know.
func upper(buf *[24]byte, args []any, i int) (n int) {
	if i >= len(args) {
		return 0
	}
	switch s := args[i].(type) {
	case string:
		n = copy(buf[:], s)
		if len(s) > len(buf) {
			return 0
		}
	case []byte:
		n = copy(buf[:], s)
		if len(s) > len(buf) {
			return 0
		}
	}
	for j, c := range buf[:n] {
		if 'a' <= c && c <= 'z' {
			buf[j] = c - 'a' + 'A'
		}
	}
	return n
}

// notRun reports an error by which a server says that it did not run the command. It is
// to be asked about single commands only: within a script, or in EXEC, others have run.
func notRun(err error) bool {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return false
	}
	switch e.Code {
	case "LOADING", "MASTERDOWN", "READONLY", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS":
		return !strings.Contains(e.Msg, "script")
	}
	return false
}

// demoted reports that the server was the primary, and is not any more.
func demoted(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Code == "READONLY"
}

// typeOf names the type of an argument that cannot be sent.
func typeOf(arg any) string {
	if arg == nil {
		return "nil"
	}
	return reflect.TypeOf(arg).String()
}
