package redis

import (
	"strings"

	"github.com/holdfast-net/holdfast"
)

// traits are what a client must know of a command. What it does not know has none: it is
// sent on a shared connection, and once.
type traits uint8

const (
	reads    traits = 1 << iota // it changes nothing, and can be run again
	blocks                      // the server answers when it pleases: it must not hold up others
	state                       // it changes what the connection is, for all who share it
	has                         // what it does is said by the word behind it
	mayBlock                    // it blocks if the word BLOCK is in it
)

func (t traits) blocks() bool       { return t&blocks != 0 }
func (t traits) changesState() bool { return t&state != 0 }

// safety says whether a command may be sent again after it may have run.
func (t traits) safety() holdfast.Safety {
	if t&reads != 0 {
		return holdfast.Idempotent
	}
	return holdfast.Unsafe
}

// traitsOf tells what a command is by its name, its subcommand and, for XREAD and
// XREADGROUP, its BLOCK. It allocates nothing.
func traitsOf(args []any) traits {
	if len(args) == 0 {
		return 0
	}
	var buf [48]byte
	name := appendUpper(buf[:0], args[0])
	t := traitsOfName(name)
	switch {
	case t&has != 0 && len(args) > 1:
		return traitsOfName(appendUpper(append(name, ' '), args[1]))
	case t&mayBlock != 0:
		t &^= mayBlock
		if waits(args[1:]) {
			t |= blocks
		}
	}
	return t &^ has
}

// appendUpper appends a word in upper case. One that is no text, or too long to be
// known, is not appended and leaves what nobody knows.
func appendUpper(dst []byte, arg any) []byte {
	switch a := arg.(type) {
	case string:
		return appendUpperText(dst, a)
	case []byte:
		return appendUpperText(dst, a)
	}
	return dst
}

func appendUpperText[S string | []byte](dst []byte, s S) []byte {
	if len(s) > cap(dst)-len(dst) {
		return dst
	}
	for i := range len(s) {
		c := s[i]
		if 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}

// waits looks for BLOCK among the options of XREAD and XREADGROUP, which STREAMS ends.
// A group or a consumer may have either name.
func waits(options []any) bool {
	for i := 0; i < len(options); i++ {
		switch {
		case isWord(options[i], "BLOCK"):
			return true
		case isWord(options[i], "STREAMS"):
			return false
		case isWord(options[i], "GROUP"):
			i += 2
		}
	}
	return false
}

func isWord(arg any, word string) bool {
	switch a := arg.(type) {
	case string:
		return strings.EqualFold(a, word)
	case []byte:
		return strings.EqualFold(string(a), word)
	}
	return false
}

// traitsOfName is the table. What reads is what COMMAND of Redis 7 flags as readonly,
// which a test compares, and what asks a server about itself.
func traitsOfName(name []byte) traits {
	switch string(name) {
	case "BITCOUNT", "BITFIELD_RO", "BITPOS", "DBSIZE", "DIGEST", "DUMP", "EVALSHA_RO", "EVAL_RO", "EXISTS",
		"EXPIRETIME", "FCALL_RO", "GEODIST", "GEOHASH", "GEOPOS", "GEORADIUSBYMEMBER_RO",
		"GEORADIUS_RO", "GEOSEARCH", "GET", "GETBIT", "GETRANGE", "HEXISTS", "HEXPIRETIME", "HGET",
		"HGETALL", "HKEYS", "HLEN", "HMGET", "HPEXPIRETIME", "HPTTL", "HRANDFIELD", "HSCAN",
		"HSTRLEN", "HTTL", "HVALS", "KEYS", "LCS", "LINDEX", "LLEN", "LOLWUT", "LPOS", "LRANGE",
		"MGET", "PEXPIRETIME", "PFCOUNT", "PTTL", "RANDOMKEY", "SCAN", "SCARD", "SDIFF",
		"SINTER", "SINTERCARD", "SISMEMBER", "SMEMBERS", "SMISMEMBER", "SORT_RO", "SRANDMEMBER",
		"SSCAN", "STRLEN", "SUBSTR", "SUNION", "TOUCH", "TTL", "TYPE", "VCARD", "VDIM", "VEMB",
		"VGETATTR", "VINFO", "VISMEMBER", "VLINKS", "VRANDMEMBER", "VSIM", "XLEN", "XPENDING",
		"XRANGE", "XREVRANGE", "ZCARD", "ZCOUNT", "ZDIFF", "ZINTER", "ZINTERCARD", "ZLEXCOUNT",
		"ZMSCORE", "ZRANDMEMBER", "ZRANGE", "ZRANGEBYLEX", "ZRANGEBYSCORE", "ZRANK", "ZREVRANGE",
		"ZREVRANGEBYLEX", "ZREVRANGEBYSCORE", "ZREVRANK", "ZSCAN", "ZSCORE", "ZUNION":
		return reads
	case "ECHO", "INFO", "LASTSAVE", "PING", "ROLE", "TIME":
		return reads
	case "XREAD":
		return reads | mayBlock
	case "XREADGROUP": // it moves the group on
		return mayBlock

	case "BLMOVE", "BLMPOP", "BLPOP", "BRPOP", "BRPOPLPUSH", "BZMPOP", "BZPOPMAX", "BZPOPMIN",
		"MIGRATE", "SAVE", "SHUTDOWN", "WAIT", "WAITAOF",
		"DEBUG SLEEP", "DEBUG RELOAD", "DEBUG LOADAOF":
		return blocks

	case "ASKING", "AUTH", "DISCARD", "EXEC", "HELLO", "MULTI", "QUIT", "READONLY", "READWRITE",
		"REPLCONF", "RESET", "SELECT", "UNWATCH", "WATCH",
		"SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE",
		"CLIENT CACHING", "CLIENT CAPA", "CLIENT IMPORT-SOURCE", "CLIENT NO-EVICT",
		"CLIENT NO-TOUCH", "CLIENT REPLY", "CLIENT SETINFO", "CLIENT SETNAME", "CLIENT TRACKING",
		"SCRIPT DEBUG":
		return state
	case "MONITOR", "PSYNC", "SYNC": // and there is no end of the answer
		return state | blocks

	case "COMMAND": // alone it reads too
		return has | reads
	case "ACL", "CLIENT", "CLUSTER", "CONFIG", "DEBUG", "FUNCTION", "LATENCY", "MEMORY", "MODULE",
		"OBJECT", "PUBSUB", "SCRIPT", "SENTINEL", "SLOWLOG", "XINFO":
		return has
	}
	return traitsOfSubcommand(name)
}

// traitsOfSubcommand is the part of the table with two words that only reads.
func traitsOfSubcommand(name []byte) traits {
	switch string(name) {
	case "ACL CAT", "ACL DRYRUN", "ACL GENPASS", "ACL GETUSER", "ACL LIST", "ACL USERS", "ACL WHOAMI",
		"CLIENT GETNAME", "CLIENT GETREDIR", "CLIENT ID", "CLIENT INFO", "CLIENT LIST", "CLIENT TRACKINGINFO",
		"CLUSTER COUNT-FAILURE-REPORTS", "CLUSTER COUNTKEYSINSLOT", "CLUSTER GETKEYSINSLOT",
		"CLUSTER INFO", "CLUSTER KEYSLOT", "CLUSTER LINKS", "CLUSTER MYID", "CLUSTER MYSHARDID",
		"CLUSTER NODES", "CLUSTER REPLICAS", "CLUSTER SHARDS", "CLUSTER SLAVES", "CLUSTER SLOTS",
		"COMMAND COUNT", "COMMAND DOCS", "COMMAND GETKEYS", "COMMAND GETKEYSANDFLAGS", "COMMAND INFO", "COMMAND LIST",
		"CONFIG GET",
		"FUNCTION DUMP", "FUNCTION LIST", "FUNCTION STATS",
		"LATENCY DOCTOR", "LATENCY GRAPH", "LATENCY HISTOGRAM", "LATENCY HISTORY", "LATENCY LATEST",
		"MEMORY DOCTOR", "MEMORY MALLOC-STATS", "MEMORY STATS", "MEMORY USAGE",
		"MODULE LIST",
		"OBJECT ENCODING", "OBJECT FREQ", "OBJECT IDLETIME", "OBJECT REFCOUNT",
		"PUBSUB CHANNELS", "PUBSUB NUMPAT", "PUBSUB NUMSUB", "PUBSUB SHARDCHANNELS", "PUBSUB SHARDNUMSUB",
		"SCRIPT EXISTS",
		"SENTINEL GET-MASTER-ADDR-BY-NAME", "SENTINEL MASTER", "SENTINEL MASTERS", "SENTINEL REPLICAS",
		"SENTINEL SENTINELS", "SENTINEL SLAVES",
		"SLOWLOG GET", "SLOWLOG LEN",
		"XINFO CONSUMERS", "XINFO GROUPS", "XINFO STREAM":
		return reads
	}
	return 0
}
