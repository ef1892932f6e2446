"""An S3 server of the tests' own (moto's, over HTTP on 127.0.0.1), and a line to it that can be cut in mid-upload.

`python -m tests.object_store` serves on a free port and prints it; it ends with its standard input.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator

KEY = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing-secret-0123456789", "AWS_REGION": "us-east-1"}


def serve() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    backend, one = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def app(environ, start_response):
        with one:  # S3's conditional writes are atomic, and moto's are not when threads serve them
            return backend(environ, start_response)

    class Silent(WSGIRequestHandler):
        def log_request(self, *_: object) -> None:
            pass

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Silent)
    print(server.port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """A server's port, while it is wanted."""
    command = [sys.executable, "-m", "tests.object_store"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield int(process.stdout.readline())
        process.stdin.close()


def client(service: str, port: int):
    """boto3's client with the server's own key."""
    import boto3

    keys = {"aws_access_key_id": KEY["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": KEY["AWS_SECRET_ACCESS_KEY"]}
    return boto3.client(service, endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", **keys)


class Line:
    """A port that leads to another one until it is `cut`, at once or after so many more bytes, either way."""

    def __init__(self, port: int):
        self.to, self.port, self.left = port, 0, float("inf")
        self.open: set[socket.socket] = set()
        self.mend()

    def mend(self) -> None:
        line, self.left = self, float("inf")

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                line._carry(self.request)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address, daemon_threads = True, True

        self.server = Server(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def cut_after(self, size: int) -> None:
        self.left = size

    def cut(self) -> None:
        self.left = 0
        self.server.shutdown()
        self.server.server_close()
        for end in list(self.open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _carry(self, client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", self.to)) as server, contextlib.suppress(OSError):
            self.open.add(client)
            other = {client: server, server: client}
            while self.left > 0:
                for end in select.select([client, server], [], [], 0.2)[0]:
                    data = end.recv(65536)
                    if not data:
                        return
                    self.left -= len(data)
                    if self.left <= 0:
                        self.server.server_close()
                        threading.Thread(target=self.server.shutdown).start()
                        return
                    other[end].sendall(data)
        self.open.discard(client)


if __name__ == "__main__":
    os.environ.update(KEY)
    serve()
