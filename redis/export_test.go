package redis

// KindOf is what is known of a command.
func KindOf(args ...any) (repeatable, blocks, states bool) {
	k := kindOf(args)
	return k&reads != 0, k.blocks(), k.changesState()
}
