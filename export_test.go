package holdfast

// AskDNS makes the Cluster ask these servers, "ip:port". Call it before the first
// use.
func (c *Cluster) AskDNS(servers ...string) { c.dns.Servers = servers }

// MaglevSlots says whose every slot of a Maglev table is.
func MaglevSlots(nodes []*Node) []*Node {
	of := nodes[0].c.members()
	slots := make([]*Node, maglevSize)
	for i, at := range newMaglevTable(of).slots {
		slots[i] = of[at]
	}
	return slots
}
