# A socketserver that sends lines back, on the socket that holdfast run passes it.
import signal, socket, socketserver, threading


class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)


server = socketserver.ThreadingTCPServer(("", 0), Echo, bind_and_activate=False)
server.socket.close()
server.socket = socket.socket(fileno=3)
# Both generations wake up for one client, and one of them is too late to accept it.
server.socket.setblocking(False)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever(poll_interval=0.02)
server.server_close()  # waits for the threads
