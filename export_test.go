package holdfast

// AskDNS makes the Cluster ask these servers, "ip:port". Call it before the first
// use.
func (c *Cluster) AskDNS(servers ...string) { c.dns.Servers = servers }
