# A line server that is given its socket as systemd does it. It serves a thread a
# connection, tells of itself, and on TERM lets the connections end.
import os, signal, socket, socketserver, sys, threading

if os.path.exists("bad"):
    sys.exit(7)
assert os.environ["LISTEN_PID"] == str(os.getpid())


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            verb, _, rest = line.decode().strip().partition(" ")
            if verb == "GET":
                self.wfile.write(b"HTTP/1.0 204 No Content\r\n\r\n")
                return
            self.wfile.write(answer(verb, rest).encode() + b"\n")


def answer(verb, rest):
    if verb == "PING":
        return "PONG"
    if verb == "PID":
        return str(os.getpid())
    if verb == "ENV":
        return os.environ.get(rest, "unset")
    if verb == "BLOCKS":
        return str(os.get_blocking(3))
    if verb == "DIE":
        os._exit(3)
    return "UNKNOWN COMMAND"


class Server(socketserver.ThreadingTCPServer):
    def __init__(self, fd):
        super().__init__(("", 0), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = socket.socket(fileno=fd)
        # Both generations wait for the same clients, and one of them is too late.
        self.socket.setblocking(False)


def ready():
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.sendto(b"READY=1", "\0" + path[1:] if path[0] == "@" else path)


server = Server(3)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
ready()
server.serve_forever(poll_interval=0.02)
server.server_close()
