"""`maskrcnn-bench demo --serve`: a page on a local port that shows what a model finds in the camera or in one's own pictures.

    GET  /         the page
    GET  /model    JSON: class names and their colours, what the server takes
    POST /detect   an image as the body; answers JSON with detections in the form of COCO's results
    POST /draw     the same; answers a JPEG with the detections drawn on it

`?score=0.5` sets the least score, `?opacity=0.45` that of the masks in /draw. Nothing a client sends is ever used as a path, and
errors are JSON with one text, `error`.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from .answers import MOST_BYTES, TYPES, Refusal, Turns, as_jpeg, as_json, description, read_picture
from .options import port, share

if TYPE_CHECKING:
    from .predictor import COCODemo

logger = logging.getLogger("maskrcnn_bench.demo")

WAITING = 4
"""Images that may wait while the model is at work; the next one is turned away."""
CONNECTIONS = 32
BODY_SECONDS = 60
"""In which a body must have arrived."""
HERE = ("localhost", "127.0.0.1", "::1")
LAST_SECONDS = 5
"""In which a connection ends when the server does."""


# ------------------------------------------------------------------------------------------------------- the verb


def serve_main(argv: Sequence[str]) -> int:
    """Serves until Ctrl-C; `argv` is what follows `demo --serve`. Returns the exit code."""
    args = _parser().parse_intermixed_args(list(argv))
    from .predictor import COCODemo

    try:
        demo = COCODemo.from_weights(_weights(args), args.config_file, args.opts, args.score)
        demo.require_colours("the page")
        server = _bound(args.host, args.port, demo)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _tell(server, args.host)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("\nstopped")
    finally:
        server.server_close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{Path(sys.argv[0]).name} --serve",
        usage="%(prog)s [--weights FILE] [options] [KEY VALUE ...]",
        description="Shows what a model finds: a page on a local port, for the camera and for pictures dropped, pasted or chosen.",
        epilog="From a machine without a screen: ssh -L 8080:127.0.0.1:8080 THERE, then open http://127.0.0.1:8080 here.",
    )
    weights = "a trained model: a file, an address, or the output folder of a training; without it output/demo, which `demo` makes"
    parser.add_argument("--weights", default="", metavar="FILE", help=weights)
    config = "configuration, for weights that do not carry one: a YAML file, or the name of a shipped one"
    parser.add_argument("--config-file", default="", metavar="FILE", help=config)
    host = "address to listen at; %(default)s, so that only this machine can reach it"
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help=host)
    parser.add_argument("--port", type=port, default=8080, metavar="N", help="%(default)s; 0 takes any that is free")
    parser.add_argument("--score", type=share, default=0.5, metavar="S", help="where the page's slider begins, 0 to 1; %(default)s")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes of the configuration: MODEL.DEVICE cpu")
    return parser


def _weights(args: argparse.Namespace) -> str:
    made = Path("output/demo")
    if not args.weights and not (made / "last_checkpoint").is_file():
        raise ValueError(f"no trained model in {made}; name one with --weights, or make one with `maskrcnn-bench demo`")
    return args.weights or str(made)


def _bound(host: str, port: int, demo: COCODemo) -> DemoServer:
    try:
        return DemoServer(host, port, demo)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"cannot listen at {host}, port {port}: {reason}; --host and --port choose others, --port 0 any free one") from None


def _tell(server: DemoServer, host: str) -> None:
    at = f"[{host}]" if ":" in host else host
    print(f"Open http://{at}:{server.server_port}/ in a browser; Ctrl-C ends.", flush=True)
    if host not in HERE:
        print("Everybody who reaches this machine can use it. Browsers give the camera to localhost and to https only.", flush=True)


# ------------------------------------------------------------------------------------------------------- the server


class DemoServer(ThreadingHTTPServer):
    """A thread for each connection, and one for the model.

    Args:
        host: name or address, of IPv4 or IPv6.
        port: 0 takes any that is free.
    """

    daemon_threads = True
    request_queue_size = CONNECTIONS

    def __init__(self, host: str, port: int, demo: COCODemo):
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        self.turns = Turns(WAITING)
        self._talking: dict[threading.Thread, Any] = {}
        super().__init__((host, port), Handler)
        self.demo = demo
        self.page = Path(__file__).with_name("page.html").read_bytes()
        self.policy = content_policy(self.page.decode())
        self.description = json.dumps(description(demo)).encode()
        self._connections = threading.BoundedSemaphore(CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread, unless there are too many."""
        if not self._connections.acquire(blocking=False):
            request.send(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self._talking[threading.current_thread()] = request
        try:
            super().process_request_thread(request, client_address)
        finally:
            del self._talking[threading.current_thread()]
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """What is left to do when a connection broke: nothing."""
        logger.debug("connection of %s ended", client_address, exc_info=True)

    def server_close(self) -> None:
        """Ends the connections too: a thread that still runs when the interpreter goes can abort the program."""
        super().server_close()
        self.turns.close()
        talking = dict(self._talking)
        for request in talking.values():
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)
        until = time.monotonic() + LAST_SECONDS
        for thread in talking:
            thread.join(max(0.0, until - time.monotonic()))


def content_policy(page: str) -> str:
    """Lets the page's own scripts and styles work and no others, and the page talk to this server only."""
    hashes = {}
    for tag in ("script", "style"):
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
        hashes[tag] = " ".join(f"'sha256-{digest}'" for digest in digests)
    sources = f"script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; img-src 'self' blob: data:; media-src blob:"
    return f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "maskrcnn-bench"
    sys_version = ""
    timeout = 30
    server: DemoServer
    _unread = True
    """Whether a body is, or may be, still to come."""

    def _route(self) -> None:
        try:
            self._require_name()
            url = urlsplit(self.path)
            methods = ROUTES.get(url.path)
            if methods is None:
                raise Refusal(HTTPStatus.NOT_FOUND, f"there is nothing here; there are {', '.join(ROUTES)}")
            answer = methods.get("GET" if self.command == "HEAD" else self.command)
            if answer is None:
                allowed = ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])
                raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"{url.path} takes {allowed}, not {self.command}", {"Allow": allowed})
            content, kind = answer(self, parse_qs(url.query))
        except Refusal as refusal:
            self._fail(refusal.status, str(refusal), refusal.headers)
        except ConnectionError:
            self.close_connection = True
        except ValueError as error:
            self._fail(HTTPStatus.BAD_REQUEST, f"bad address: {error}")
        else:
            self._send(HTTPStatus.OK, content, kind, {})

    def _require_name(self) -> None:
        """Of a server for this machine alone, only its names: a foreign page whose name leads here must not use it."""
        name = urlsplit("//" + self.headers.get("Host", HERE[0])).hostname
        if self.server.server_address[0] in HERE and name not in HERE:
            raise Refusal(HTTPStatus.FORBIDDEN, f"this server answers to {', '.join(HERE)} only; --host chooses another address")

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _route

    # answers

    def _page(self, query: dict[str, list[str]]) -> tuple[bytes, str]:
        return self.server.page, "text/html; charset=utf-8"

    def _model(self, query: dict[str, list[str]]) -> tuple[bytes, str]:
        return self.server.description, "application/json"

    def _detect(self, query: dict[str, list[str]]) -> tuple[bytes, str]:
        score = _number(query, "score", 0.5)
        return self._with_model(as_json, score), "application/json"

    def _draw(self, query: dict[str, list[str]]) -> tuple[bytes, str]:
        score, opacity = _number(query, "score", 0.5), _number(query, "opacity", 0.45)
        return self._with_model(as_jpeg, score, opacity), "image/jpeg"

    def _with_model(self, answer: Callable[..., bytes], *values: float) -> bytes:
        """Reads the picture, and waits for what the model makes of it."""
        import torch

        content = self._body()
        try:
            with self.server.turns as worker:
                return worker.submit(answer, self.server.demo, read_picture(content), *values).result()
        except (Refusal, ConnectionError):
            raise
        except (torch.OutOfMemoryError, MemoryError):
            message = "not enough memory for this image; start the server with a smaller INPUT.MAX_SIZE_TEST"
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, message) from None
        except Exception:
            # The fault is not the client's, and must not end the server.
            logger.exception("the model failed")
            raise Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "the model failed on this image; the server's log tells why") from None

    # bodies

    def handle_expect_100(self) -> bool:
        """Clients may ask before they send a large body."""
        try:
            self._length()
        except Refusal as refusal:
            self._fail(refusal.status, str(refusal))
            return False
        return super().handle_expect_100()

    def _length(self) -> int:
        """Of the body, bytes, after all that can be said before it is read."""
        kind = self.headers.get("Content-Type", "").split(";")[0].strip().lower()
        if kind not in TYPES:
            message = f"expected a body with Content-Type {', '.join(TYPES)}; got {kind or 'none'}"
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message)
        text = self.headers.get("Content-Length")
        if text is None or "Transfer-Encoding" in self.headers:
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "expected a header Content-Length and a body in one piece")
        if not re.fullmatch("[0-9]{1,18}", text):
            raise Refusal(HTTPStatus.BAD_REQUEST, "Content-Length is not a number of bytes")
        if int(text) > MOST_BYTES:
            message = f"the image has {int(text) / 2**20:.1f} MiB; at most {MOST_BYTES >> 20} are taken"
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        return int(text)

    def _body(self) -> bytes:
        left = self._length()
        end = time.monotonic() + BODY_SECONDS
        parts = []
        while left:
            part = self.rfile.read1(min(left, 1 << 16))
            if not part:
                raise ConnectionError("the client left before its image was here")
            if time.monotonic() > end:
                raise Refusal(HTTPStatus.REQUEST_TIMEOUT, f"the image was not here within {BODY_SECONDS} seconds")
            parts.append(part)
            left -= len(part)
        self._unread = False
        return b"".join(parts)

    def parse_request(self) -> bool:
        """Reads the head of a request, as the parent class does, and notes whether a body follows."""
        self._unread = True
        parsed = super().parse_request()
        if parsed:
            self._unread = self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers
        return parsed

    def _discard(self) -> None:
        """Ends the connection, but reads on for a moment: a client that is still sending would not see the answer."""
        self.close_connection = True
        end = time.monotonic() + 5
        try:
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1)
            while time.monotonic() < end and self.rfile.read1(1 << 20):
                pass
        except OSError:
            return

    # sending

    def _send(self, status: int, content: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        policy = {"Content-Security-Policy": self.server.policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        about = {"Content-Type": kind, "Content-Length": str(len(content)), **policy, **headers}
        for name, value in {**about, **({"Connection": "close"} if self._unread else {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        if self._unread:
            self._discard()

    def _fail(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps({"error": message}).encode(), "application/json", headers or {})

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers requests that the parent class could not make sense of."""
        self._unread = True
        self._fail(code, message or HTTPStatus(code).phrase)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are nobody's business but a debugger's."""
        logger.debug(format, *args)


ROUTES = {
    "/": {"GET": Handler._page},
    "/model": {"GET": Handler._model},
    "/detect": {"POST": Handler._detect},
    "/draw": {"POST": Handler._draw},
}


def _number(query: dict[str, list[str]], name: str, default: float) -> float:
    """A number from 0 to 1 of an address."""
    text = query.get(name, [str(default)])[-1]
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"{name}: expected a number from 0 to 1, got {text[:40]!r}")
    return value
