"""An OpenAI-compatible server in a thread, that does what a test wants it to."""

import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Stub:
    """Answers a request with what ``behave(number, body)`` gives: a text, or a status, headers and content."""

    def __init__(self, behave):
        self.requests, self.headers, self.paths = [], [], []
        stub, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                stub.paths.append(self.path)
                self.reply(*stub.of_models)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    stub.paths.append(self.path)
                    stub.requests.append(body)
                    stub.headers.append(dict(self.headers))
                    number = len(stub.requests)
                said = behave(number, body)
                self.reply(*(said if isinstance(said, tuple) else (200, {}, json.dumps(completion(said)))))

            def reply(self, status, headers, content):
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content.encode())), **headers}.items():
                    self.send_header(name, value)
                with suppress(BrokenPipeError):  # who asked has gone
                    self.end_headers()
                    self.wfile.write(content.encode())
                self.close_connection = True

            def log_message(self, *_):
                pass

        self.of_models = (200, {}, '{"data": []}')
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def completion(text, reason="stop", usage=(7, 3)):
    choice = {"message": {"role": "assistant", "content": text}, "text": text, "finish_reason": reason}
    given = {"usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}} if usage else {}
    return {"choices": [choice], **given}


def refused(status, message="no", **headers):
    return status, headers, json.dumps({"error": {"message": message}})
