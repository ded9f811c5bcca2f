"""A stand-in for an OpenAI-compatible endpoint on loopback: it speaks chat completions, and fails as it is told."""

import json
import math
import re
import threading
import time
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SHOWN = re.compile(r'"instruction": """(.*?)""".*?"output": """(.*?)""".*?"output": """(.*?)"""', re.DOTALL)


def prefers_longer(first: str, second: str) -> float:
    """P(the first is better), by length."""
    return 1 / (1 + math.exp((len(second) - len(first)) / 10))


class Endpoint:
    """Serves until closed.

    Attributes:
        faults: of a key (instruction, first, second) what its next requests get instead of a reply, in order:
            "429", "500", "503", "401", "slow", "torn", "no_choice", "refusal", "nonsense", "text", "echo_key".
        asked: number of requests of each key; `answered` of whole replies sent.
        delay: seconds before each reply.
    """

    def __init__(self) -> None:
        self.faults: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        self.asked: Counter[tuple[str, str, str]] = Counter()
        self.answered: Counter[tuple[str, str, str]] = Counter()
        self.keys_seen: set[str] = set()
        self.requests: list[dict[str, Any]] = []
        self.delay = 0.0
        self.slow = 3.0
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.answer(self, body)

        return Handler

    def answer(self, handler: Any, body: dict[str, Any]) -> None:
        shown = SHOWN.search(body["messages"][-1]["content"])
        assert shown is not None
        key = (shown[1], shown[2], shown[3])
        with self.lock:
            self.asked[key] += 1
            self.requests.append(body)
            self.keys_seen.add(handler.headers["Authorization"])
            fault = self.faults[key].pop(0) if self.faults[key] else ""
        time.sleep(self.slow if fault == "slow" else self.delay)
        try:
            self._send(handler, key, fault)
        except (BrokenPipeError, ConnectionResetError):
            return  # the client has gone

    def _send(self, handler: Any, key: tuple[str, str, str], fault: str) -> None:
        if fault.isdigit():
            said = f"Incorrect API key: {handler.headers['Authorization'].split()[-1]}" if fault == "401" else "faulty"
            headers = {"Retry-After": "0.05"} if fault == "429" else {}
            return _respond(handler, int(fault), json.dumps({"error": {"message": said}}), headers)
        reply = json.dumps(self._reply(handler, key, fault))
        if fault == "torn":
            return _respond(handler, 200, reply[: len(reply) // 2])
        with self.lock:
            self.answered[key] += fault != "no_choice"
        return _respond(handler, 200, reply)

    def _reply(self, handler: Any, key: tuple[str, str, str], fault: str) -> dict[str, Any]:
        probability = prefers_longer(key[1], key[2])
        label = "m" if probability > 0.5 else "M"
        top = [{"token": t, "logprob": math.log(p)} for t, p in (("m", probability), ("M", 1 - probability))]
        message: dict[str, Any] = {"role": "assistant", "content": label}
        choice = {"index": 0, "finish_reason": "length", "message": message}
        choice["logprobs"] = {"content": [{"token": label, "logprob": -0.1, "top_logprobs": top}]}
        if fault == "refusal":
            message |= {"content": None, "refusal": "I cannot compare these."}
            choice["logprobs"] = None
        if fault == "nonsense":
            message["content"] = "Both are fine"
            choice["logprobs"]["content"][0]["top_logprobs"] = [{"token": "Both", "logprob": -0.1}]
        if fault == "text":
            choice["logprobs"] = None
        if fault == "echo_key":
            message["content"] = label
            choice["note"] = handler.headers["Authorization"]
        choices = [] if fault == "no_choice" else [choice]
        return {"id": "1", "object": "chat.completion", "model": "m", "choices": choices,
                "usage": {"prompt_tokens": 300, "completion_tokens": 1, "total_tokens": 301}}  # fmt: skip


def _respond(handler: Any, status: int, text: str, headers: dict[str, str] | None = None) -> None:
    content = text.encode()
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)
