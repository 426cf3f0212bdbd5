"""A page that is made anew as results come in, on the loopback address of this machine."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .errors import UserError

LOOPBACK = "127.0.0.1"
PORT = 8765  # the usual one, so that a tunnel to another machine can be given it; else a free one
# Pages may load nothing; this one asks whether there is a new one.
_NOTHING = "default-src 'none';"
_ASKING = """<script>
setInterval(async () => {
  try {
    const now = await (await fetch("now")).json();
    if (now !== %s) location.reload();
  } catch { document.title = document.title.replace(/^(ended: )?/, "ended: "); }
}, 2000);
</script></body>"""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tells what went wrong, unless it is that a reader has gone."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Served:
    """The page while it is served.

    Args:
        make: Makes the page, as HTML.
        state: Says what changes when the page does.
    """

    def __init__(self, make: Callable[[], str], state: Callable[[], Any]):
        self._make, self._state = make, state
        self._lock = threading.Lock()
        self._made: tuple[str, bytes] | None = None
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                """Answers with the page, or with what says whether it is the last one."""
                # A page of another site may have its own name lead here.
                if self.headers.get("Host") not in served.names:
                    self._answer(403, "text/plain", b"This is for this machine alone.\n")
                elif self.path == "/now":
                    self._answer(200, "application/json", json.dumps(served.now).encode())
                elif self.path == "/":
                    self._answer(*served.page())
                else:
                    self._answer(404, "text/plain", b"There is one page: /\n")

            def _answer(self, code: int, kind: str, content: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Type", f"{kind}; charset=utf-8")
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                """Leaves the terminal to what is watched."""

        try:
            self._server = _Server((LOOPBACK, PORT), Handler)
        except OSError:  # Another one is watched there.
            self._server = _Server((LOOPBACK, 0), Handler)
        port = self._server.server_address[1]
        self.names = (f"{LOOPBACK}:{port}", f"localhost:{port}")
        self.address = f"http://{LOOPBACK}:{port}/"

    @property
    def now(self) -> str:
        """What the page would be made of."""
        return repr(self._state())

    def page(self) -> tuple[int, str, bytes]:
        """Returns the page, made anew where something has changed."""
        with self._lock:
            now = self.now
            if self._made is None or self._made[0] != now:
                try:
                    html = self._make()
                except UserError as error:  # It may be that it is just being written.
                    return 503, "text/plain", f"{error}\n".encode()
                html = html.replace(_NOTHING, f"{_NOTHING} connect-src 'self';", 1)
                script = _ASKING % json.dumps(now).replace("<", "\\u003c")
                before, _, after = html.rpartition("</body>")
                self._made = now, f"{before}{script}{after}".encode()
            return 200, "text/html", self._made[1]

    def start(self) -> None:
        """Begins to answer, in a thread of its own."""
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def close(self) -> None:
        """Answers no more."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def served(make: Callable[[], str], state: Callable[[], Any]) -> Iterator[Served]:
    """Serves a page within it; see `Served`."""
    page = Served(make, state)
    page.start()
    try:
        yield page
    finally:
        page.close()
