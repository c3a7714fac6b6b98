"""A service of our own, for what asks one."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

Answer = Callable[[str, dict, dict], tuple]


@pytest.fixture
def service() -> Iterator[Callable[[Answer], str]]:
    """A service that answers by a function of (path, headers, body): (status, JSON, and headers where it has some)."""
    servers = []

    def serve(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, found, *more = answer(self.path, dict(self.headers), body)
                text = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                for name, value in more[0].items() if more else ():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield serve
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def openai_answer() -> Callable[..., dict]:
    """A chat completion that says this."""

    def completion(content: str, thought: str = "", reason: str = "stop") -> dict:
        message = {"role": "assistant", "content": content, "reasoning_content": thought}
        return {"choices": [{"message": message, "finish_reason": reason}], "usage": {"completion_tokens": 7}}

    return completion
