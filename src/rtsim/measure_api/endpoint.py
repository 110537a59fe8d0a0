"""One streamed request to an OpenAI-compatible endpoint: when each piece arrived, or what failed.

Standard library only; redirects are not followed, so a key goes nowhere but where it was sent.
The key lives in this object alone: no error, repr or result holds it, and a server that echoes it
has it cut out. Times are of a monotonic clock, from before the connection to the last piece.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

from rtsim.errors import SpecError

Form = Literal["completions", "chat"]
FORMS: tuple[Form, ...] = ("completions", "chat")
_LONGEST_PROBLEM = 160  # characters of a server's message that are kept
_LARGEST_ERROR_BYTES = 4096
_LONGEST_LINE = 1 << 20
_OK = 200
_BAD_REQUEST = 400  # below it: redirects, which are not followed
_FATAL = (401, 403, 404, 405)  # whatever is asked; 400, 413 and 422 are of one size
_TOO_MANY = 429
_SERVER_ERRORS = 500


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back of one call.

    arrivals_s: when each piece with text arrived, from the start of the call. tokens: as the
    server counts them, else the pieces. prompt_tokens: as the server counts them, None if it does
    not say. problem: "" or what went wrong, in a line; what came before it is kept. retry: worth
    trying again, after retry_after_s if the server said so.
    """

    runtime_s: float
    arrivals_s: tuple[float, ...] = ()
    tokens: int = 0
    prompt_tokens: int | None = None
    problem: str = ""
    retry: bool = False
    retry_after_s: float | None = None
    fatal: bool = False  # every further call would fail alike: wrong key, wrong path


@dataclass(frozen=True)
class Endpoint:
    """An address, a model and how to ask it.

    timeout_s: of each wait for something; longest_call_s: of a call, however lively.
    """

    base_url: str
    model: str
    form: Form = "completions"
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 60.0
    longest_call_s: float = 600.0

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise SpecError("form", self.form, f"must be one of {', '.join(FORMS)}")
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SpecError("url", self.shown_url, "must be such as https://host/v1")
        if parts.username or parts.password:
            raise SpecError("url", self.shown_url, "must not hold a password; name a variable")
        try:
            _ = parts.port
        except ValueError:
            raise SpecError("url", self.shown_url, "has an impossible port") from None
        if self.key and (not self.key.isascii() or not self.key.isprintable()):
            raise SpecError("key", "(hidden)", "holds characters that no header can carry")

    @property
    def shown_url(self) -> str:
        """The address without what may be secret in it."""
        parts = urlsplit(self.base_url)
        shown = f"{parts.netloc.rpartition('@')[2]}{parts.path}"
        return f"{parts.scheme}://{shown}" if parts.scheme else shown

    @property
    def host(self) -> str:
        """Name or number of the machine that is asked."""
        return urlsplit(self.base_url).hostname or ""

    def ask(self, prompt: str, output_tokens: int) -> Answer:
        """One call. Never raises for what an endpoint does; see `Answer.problem`."""
        start = time.perf_counter()
        arrivals: list[float] = []
        counted: dict[str, int] = {}

        def now() -> float:
            return time.perf_counter() - start

        def failed(problem: str, **more: Any) -> Answer:
            return Answer(
                now(), tuple(arrivals), counted.get("completion_tokens", len(arrivals)),
                counted.get("prompt_tokens"), self._clean(problem), **more,
            )  # fmt: skip

        connection = self._connection()
        try:
            body = json.dumps(self._request(prompt, output_tokens)).encode()
            connection.request("POST", self._path(), body, self._headers())
            response = connection.getresponse()
            if response.status != _OK:
                return self._refusal(response, failed)
            if response.getheader("Content-Type", "").startswith("application/json"):
                return self._whole(response, counted, now, failed)
            ended = False
            for event in _events(response, start + self.longest_call_s):
                if event == "[DONE]":
                    ended = True
                    break
                try:
                    piece = json.loads(event)
                except ValueError:
                    return failed("sent a piece that is no JSON", retry=True)
                if not isinstance(piece, dict):
                    return failed("sent a piece that is no JSON object", retry=True)
                if "error" in piece:
                    return failed(f"error in the stream: {_message(piece)}", retry=True)
                _count(piece, counted)
                ended = ended or _finished(piece)
                if _text(piece):
                    arrivals.append(now())
            if not arrivals:
                return failed("streamed nothing", retry=True)
            if not ended:
                return failed("hung up before the end", retry=True)
            tokens = counted.get("completion_tokens", len(arrivals))
            return Answer(arrivals[-1], tuple(arrivals), tokens, counted.get("prompt_tokens"))
        except TimeoutError:
            return failed(f"stalled: nothing for {self.timeout_s:g} s", retry=True)
        except ConnectionRefusedError:
            return failed("refused the connection", retry=True)
        except socket.gaierror:
            return failed("no such host", fatal=True)
        except ssl.SSLError as error:
            return failed(f"no secure connection: {error.reason}", fatal=True)
        except (OSError, http.client.HTTPException) as error:
            return failed(f"connection lost: {type(error).__name__}", retry=True)
        finally:
            with contextlib.suppress(OSError):
                connection.close()

    def _whole(
        self, response: http.client.HTTPResponse, counted: dict[str, int],
        now: Callable[[], float], failed: Callable[..., Answer],
    ) -> Answer:  # fmt: skip
        """The answer of an endpoint that does not stream: one time, and no first token."""
        try:
            body = json.loads(response.read())
        except ValueError:
            return failed("answered with no JSON", retry=True)
        end_s = now()
        if not isinstance(body, dict) or "error" in body:
            return failed(f"error in the answer: {_message(body)}", retry=True)
        _count(body, counted)
        if "completion_tokens" not in counted:
            return failed("answered in one piece and did not count its tokens")
        return Answer(end_s, (), counted["completion_tokens"], counted.get("prompt_tokens"))

    def _connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.base_url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else (
            http.client.HTTPConnection
        )  # fmt: skip
        return kind(parts.hostname or "", parts.port, timeout=self.timeout_s)

    def _path(self) -> str:
        base = urlsplit(self.base_url).path.rstrip("/")
        return f"{base}/chat/completions" if self.form == "chat" else f"{base}/completions"

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        return headers

    def _request(self, prompt: str, output_tokens: int) -> dict[str, Any]:
        asked: dict[str, Any] = {
            "model": self.model,
            "max_tokens": output_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.form == "chat":
            asked["messages"] = [{"role": "user", "content": prompt}]
        else:
            asked["prompt"] = prompt
        return asked

    def _refusal(self, response: http.client.HTTPResponse, failed: Callable[..., Answer]) -> Answer:
        status = response.status
        text = response.read(_LARGEST_ERROR_BYTES).decode("utf-8", "replace")
        with contextlib.suppress(ValueError):
            text = _message(json.loads(text))
        problem = f"status {status} {response.reason}".rstrip() + (f": {text}" if text else "")
        if status == _TOO_MANY or status >= _SERVER_ERRORS:
            wait_s = _retry_after(response.getheader("Retry-After"))
            return failed(problem, retry=True, retry_after_s=wait_s)
        return failed(problem, fatal=status in _FATAL or status < _BAD_REQUEST)

    def _clean(self, text: str) -> str:
        """One short line without the key."""
        if self.key:
            text = text.replace(self.key, "(key)")
        text = " ".join(text.split())
        return text if len(text) <= _LONGEST_PROBLEM else text[: _LONGEST_PROBLEM - 3] + "..."


def _events(response: http.client.HTTPResponse, deadline: float) -> Iterator[str]:
    """The data of each server-sent event; lines of an event are joined, comments left out.

    Raises TimeoutError past the deadline (`time.perf_counter`): signs of life are no tokens.
    """
    lines: list[str] = []
    while raw := response.readline(_LONGEST_LINE):
        if time.perf_counter() > deadline:
            raise TimeoutError
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        if line.startswith("data:"):
            lines.append(line[5:].lstrip())
        elif not line and lines:
            yield "\n".join(lines)
            lines = []
    if lines:
        yield "\n".join(lines)


def _choice(piece: dict[str, Any]) -> dict[str, Any]:
    choices = piece.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    return first if isinstance(first, dict) else {}


def _text(piece: dict[str, Any]) -> str:
    """Text of a piece, visible or of reasoning: each is tokens that were waited for."""
    choice = _choice(piece)
    delta = choice.get("delta")
    source = delta if isinstance(delta, dict) else choice
    texts = (source.get(name) for name in ("content", "text", "reasoning_content"))
    return "".join(text for text in texts if isinstance(text, str))


def _finished(piece: dict[str, Any]) -> bool:
    return _choice(piece).get("finish_reason") is not None


def _count(piece: dict[str, Any], counted: dict[str, int]) -> None:
    usage = piece.get("usage")
    if isinstance(usage, dict):
        for name in ("prompt_tokens", "completion_tokens"):
            value = usage.get(name)
            if isinstance(value, int) and value >= 0:
                counted[name] = value


def _message(body: Any) -> str:
    error = body.get("error", body) if isinstance(body, dict) else body
    text = error.get("message", "") if isinstance(error, dict) else error
    return str(text)


def _retry_after(text: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date; None: it says nothing."""
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return None
