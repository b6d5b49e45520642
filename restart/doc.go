// Package restart replaces a running server by its successor, and nobody notices:
// no connection is refused, no request is lost, no pid changes.
//
//	func main() {
//		srv := &serve.Server{Handler: serve.Frames(frame.Lines(), echo)}
//		err := restart.Run(context.Background(), restart.Config{Log: slog.Default()},
//			restart.Bind(srv, "tcp://:7000", "unix:app.sock"))
//		if err != nil {
//			log.Fatal(err)
//		}
//	}
//
// Install a new binary and send the process SIGHUP or SIGUSR1, or ask for the same
// with `holdfast restart --wait`, which says whether it went well.
//
// # Processes
//
// The process that was started stays, as the supervisor: it keeps the pid, the
// listening sockets, the control socket and the keys of TLS tickets, and serves
// nobody. It runs the same program again as a worker, which serves. Each worker is
// a generation, and a restart is a succession of two:
//
//  1. The successor starts, is given the sockets and the state of its predecessor,
//     runs Config.Start, and says that it is ready when every accept loop waits.
//  2. The predecessor stops accepting, but can take up again. If the successor dies
//     within Timeouts.Confirm it does, and the restart is rolled back.
//  3. The restart is committed. The predecessor hands over the live connections that
//     can be handed over, drains the others and exits.
//
// So Run comes first in main. In the supervisor it returns only at the end; what
// must happen in workers only, before they serve, belongs in Config.Start.
//
// # Guarantees
//
// The sockets are bound once and passed on, never bound anew: what has connected
// waits in their queues while nobody accepts. A successor that is missing, crashes,
// hangs or speaks another protocol changes nothing for clients, and its failure is
// the answer to whoever asked for the restart. A worker that crashes is respawned,
// with growing pauses, and clients wait meanwhile; if a successor is starting just
// then, for that one. Restarts may be asked for at any
// time: requests that meet one under way are answered together by the next one. A
// restart waits for a drain only when there would be more than Config.Generations, and
// then the oldest is given Timeouts.Stop to end. If the supervisor is killed, its workers
// close their listeners at once and drain, so that a new supervisor can bind; a packet
// socket, though, is kept until its server has shut down. A Command is sent its stop
// signal then, on Linux, unless it has changed its user, which has the kernel forget it.
//
// # Live connections
//
// A server with HandOver and TakeOver, as serve.Server has them, passes its live
// plaintext connections on with the bytes that nobody has read yet. A connection is
// its successor's once that has claimed it, and stays with its owner if the
// successor refuses it or goes away before. TLS connections cannot be passed; they
// are drained, and resume at the successor because the ticket keys are passed.
//
// # Limits
//
// Handing over needs Unix; the supervisor itself, as it hardly ever changes, is
// replaced by a stop and a start. Where a process cannot run itself again, as on
// Windows, Run just serves until ctx ends. A connection of which the successor died
// between claim and answer is lost with it, as is one that it refuses more than two
// seconds after the predecessor gave up waiting. A worker that may open no more files
// drains what it could else pass on or take.
package restart
