"""The collector of API latencies, against a server of the test's own on this machine.

The server is told per call what to do: stream, delay, refuse, stall, hang up.
"""

from __future__ import annotations

import csv
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rtsim.cli import main as program
from rtsim.denoise import denoise
from rtsim.errors import DataError, OutputError, SpecError
from rtsim.latencies import read_latencies
from rtsim.measure_api import Endpoint, Plan, collect
from rtsim.measure_api.collect import prompt_of
from rtsim.measurements import read_table

KEY = "sk-very-secret-0123456789"
ONE = {"prompt_tokens": (8,), "output_tokens": (4,), "repeats": 1}


class Api(ThreadingHTTPServer):
    """Answers each POST with the next of `acts`; after the last one it streams as asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.acts: list[Callable[[Handler, dict[str, Any]], None]] = []
        self.requests: list[dict[str, Any]] = []
        self.headers_seen: list[dict[str, str]] = []
        self.times: list[float] = []
        self.first_s = self.gap_s = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Api

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append({"path": self.path, **asked})
        self.server.headers_seen.append(dict(self.headers))
        self.server.times.append(time.monotonic())
        act = self.server.acts.pop(0) if self.server.acts else stream()
        act(self, asked)

    def log_message(self, *args: object) -> None:
        pass

    def head(self, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def event(self, body: object) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        self.wfile.write(f"data: {text}\n\n".encode())
        self.wfile.flush()


Act = Callable[[Handler, dict[str, Any]], None]


def stream(tokens: int | None = None, usage: bool = True, done: bool = True) -> Act:
    """As many tokens as asked, or `tokens`."""

    def act(http: Handler, asked: dict[str, Any]) -> None:
        count = asked["max_tokens"] if tokens is None else tokens
        http.head()
        time.sleep(http.server.first_s)
        for i in range(count):
            if i:
                time.sleep(http.server.gap_s)
            delta = {"delta": {"content": "x"}} if "messages" in asked else {"text": "x"}
            http.event({"choices": [{**delta, "finish_reason": None}]})
        if usage:
            prompt = len((asked.get("prompt") or asked["messages"][0]["content"]).split())
            counts = {"prompt_tokens": prompt, "completion_tokens": count}
            http.event({"choices": [], "usage": counts})
        if done:
            http.event("[DONE]")

    return act


def refuse(status: int, message: str = "no", **headers: str) -> Act:
    def act(http: Handler, asked: dict[str, Any]) -> None:
        http.head(status, **headers)
        http.wfile.write(json.dumps({"error": {"message": message}}).encode())

    return act


def say(*events: object) -> Act:
    def act(http: Handler, asked: dict[str, Any]) -> None:
        http.head()
        for event in events:
            http.event(event)

    return act


def stall(seconds: float, after: int = 0) -> Act:
    def act(http: Handler, asked: dict[str, Any]) -> None:
        http.head()
        for _ in range(after):
            http.event({"choices": [{"text": "x", "finish_reason": None}]})
        time.sleep(seconds)

    return act


@pytest.fixture
def api() -> Iterator[Api]:
    server = Api()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


class Slept(list[float]):
    """Stands for time.sleep: remembers, and does not wait."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def run(api: Api, path: Path, endpoint: Endpoint | None = None, **plan: Any) -> tuple[Any, Slept]:
    slept = Slept()
    settings = {**ONE, "max_per_minute": 6000.0, "backoff_s": 0.5, **plan}
    chosen = endpoint or Endpoint(api.url, "m", timeout_s=10.0)
    return collect(chosen, Plan(**settings), path, provider="p", sleep=slept), slept


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Streams


@pytest.mark.parametrize("form", ["completions", "chat"])
def test_a_stream_is_timed(api: Api, tmp_path: Path, form: str) -> None:
    api.first_s, api.gap_s = 0.08, 0.03
    endpoint = Endpoint(api.url, "m", form=form)  # type: ignore[arg-type]
    done, _ = run(api, tmp_path / "t.csv", endpoint)
    assert (done.ok, done.short, done.failed) == (1, 0, 0)
    (row,) = rows_of(tmp_path / "t.csv")
    assert row["status"] == "ok"
    assert 0.08 <= float(row["ttft_s"]) < 5.0
    assert 0.03 <= float(row["gap_median_s"]) < 2.0
    assert float(row["gap_max_s"]) >= float(row["gap_median_s"])
    assert 0.17 <= float(row["runtime_s"]) < 10.0
    assert (row["received_tokens"], row["counted_prompt_tokens"]) == ("4", "8")
    path = "/v1/chat/completions" if form == "chat" else "/v1/completions"
    assert api.requests[0]["path"] == path
    assert api.requests[0]["max_tokens"] == 4


def test_the_table_is_one_of_latencies(api: Api, tmp_path: Path) -> None:
    """From the server's delays to a denoised runtime."""
    api.first_s, api.gap_s = 0.04, 0.01
    path = tmp_path / "t.csv"
    run(api, path, prompt_tokens=(1, 8), output_tokens=(1, 6, 12), repeats=2)
    (fit,) = denoise(read_latencies(path), bootstraps=20)
    assert fit.curve.model == "p/m"
    assert 0.009 < fit.curve.per_output_token_s < 0.05


def test_the_strict_reader_takes_the_table(api: Api, tmp_path: Path) -> None:
    path = str(tmp_path / "t.csv")
    assert program.run(
        ["measure-api", "--url", api.url, "--model", "m", "--input-lens", "4", "--output-lens",
         "2,3", "--repeats", "1", "--max-per-minute", "6000", "-o", path]
    ) == 0  # fmt: skip
    table = read_table(path)
    assert table.kind == "api_latency"
    assert set(table.columns["provider"]) == {"127.0.0.1"}


def test_other_token_counts_are_marked_rows(api: Api, tmp_path: Path) -> None:
    api.acts = [stream(2), stream(7, usage=False)]
    done, _ = run(api, tmp_path / "t.csv", repeats=3)
    assert (done.ok, done.short) == (1, 2)
    assert [row["received_tokens"] for row in rows_of(tmp_path / "t.csv")] == ["2", "7", "4"]
    assert [row["status"] for row in rows_of(tmp_path / "t.csv")] == ["short", "short", "ok"]


def whole(body: object) -> Act:
    """An endpoint that does not stream."""

    def act(http: Handler, asked: dict[str, Any]) -> None:
        http.head(Content_Type="application/json; charset=utf-8")
        http.wfile.write(body.encode() if isinstance(body, str) else json.dumps(body).encode())

    return act


def test_an_endpoint_that_does_not_stream(api: Api, tmp_path: Path) -> None:
    counts = {"prompt_tokens": 9, "completion_tokens": 4}
    api.acts = [whole({"choices": [{"text": "x x x x"}], "usage": counts})]
    run(api, tmp_path / "t.csv")
    (row,) = rows_of(tmp_path / "t.csv")
    assert (row["status"], row["ttft_s"], row["received_tokens"]) == ("ok", "", "4")
    api.acts = [stream(), whole({"choices": [{"text": "x"}]}), whole("{"), whole({"error": "full"})]
    done, _ = run(api, tmp_path / "u.csv", repeats=4, attempts=1)
    assert [problem.partition(": ")[2] for problem in done.problems] == [
        "answered in one piece and did not count its tokens",
        "answered with no JSON",
        "error in the answer: full",
    ]


# Failures that may pass


@pytest.mark.parametrize(
    ("act", "problem"),
    [
        (refuse(500), "status 500"),
        (refuse(503, "overloaded"), "overloaded"),
        (say("[DONE]"), "streamed nothing"),
        (stream(0), "streamed nothing"),
        (say({"choices": [{"text": "x"}]}), "hung up before the end"),
        (say({"choices": [{"text": "x"}]}, {"error": {"message": "broke"}}), "broke"),
        (say("{not json"), "no JSON"),
        (say([1, 2]), "no JSON object"),
        (stall(1.0), "stalled: nothing for 0.3 s"),
        (stall(1.0, after=2), "stalled"),
    ],
)
def test_passing_failures_are_tried_again(api: Api, tmp_path: Path, act: Act, problem: str) -> None:
    # A short patience only where a stall is meant, so that a busy machine makes none.
    endpoint = Endpoint(api.url, "m", timeout_s=0.3 if "stalled" in problem else 10.0)
    api.acts = [act]
    done, slept = run(api, tmp_path / "t.csv", endpoint, attempts=9)
    assert done.ok == 1
    (row,) = rows_of(tmp_path / "t.csv")
    assert int(row["attempts"]) >= 2
    assert max(slept) >= 0.5
    # And a marked row when they do not pass.
    api.acts = [act, act]
    done, _ = run(api, tmp_path / "u.csv", endpoint, attempts=2)
    assert done.failed == 1
    (row,) = rows_of(tmp_path / "u.csv")
    assert problem in row["status"]
    assert problem in done.problems[0]


def test_waits_double(api: Api, tmp_path: Path) -> None:
    api.acts = [refuse(500)] * 4
    _, slept = run(api, tmp_path / "t.csv")
    waits = [wait for wait in slept if wait >= 0.4]
    assert len(waits) == 4
    for wait, base in zip(waits, (0.5, 1.0, 2.0, 4.0), strict=True):
        assert base <= wait <= 1.25 * base


def test_retry_after_is_kept(api: Api, tmp_path: Path) -> None:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    api.acts = [refuse(429, Retry_After="7"), refuse(429, Retry_After=date),
                refuse(429, Retry_After="soon")]  # fmt: skip
    done, slept = run(api, tmp_path / "t.csv")
    assert done.ok == 1
    waits = [wait for wait in slept if wait >= 0.4]
    assert waits[0] == 7.0
    assert 25.0 < waits[1] <= 30.0
    assert 2.0 <= waits[2] <= 2.5


def test_a_wait_that_is_too_long_ends_the_attempts(api: Api, tmp_path: Path) -> None:
    api.acts = [refuse(429, Retry_After="86400")]
    done, slept = run(api, tmp_path / "t.csv")
    assert done.failed == 1
    assert max(slept, default=0.0) < 10.0


def test_the_pace_is_kept(api: Api, tmp_path: Path) -> None:
    clock = [100.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    plan = Plan((1,), (1,), 5, max_per_minute=20.0)
    api.acts = [stream(), refuse(500)]
    collect(Endpoint(api.url, "m"), plan, tmp_path / "t.csv", sleep=sleep, clock=lambda: clock[0])
    # Six calls, retries among them: five spaces of three seconds at least.
    assert len(api.requests) == 6
    assert clock[0] >= 100.0 + 5 * 3.0


def test_signs_of_life_are_no_tokens(api: Api, tmp_path: Path) -> None:
    def comments(http: Handler, asked: dict[str, Any]) -> None:
        http.head()
        for _ in range(20):
            http.wfile.write(b": still here\n\n")
            http.wfile.flush()
            time.sleep(0.05)

    api.acts = [comments]
    endpoint = Endpoint(api.url, "m", timeout_s=0.3, longest_call_s=0.4)
    done, _ = run(api, tmp_path / "t.csv", endpoint, attempts=1)
    assert "stalled" in done.problems[0]


# Failures that end it


@pytest.mark.parametrize("status", [401, 403, 404, 302])
def test_what_would_repeat_ends_at_once(api: Api, tmp_path: Path, status: int) -> None:
    api.acts = [stream(), refuse(status, "bad thing")]
    with pytest.raises(DataError, match=rf"status {status}.*bad thing.*1 row of this run kept"):
        run(api, tmp_path / "t.csv", repeats=5)
    assert len(api.requests) == 2
    assert len(rows_of(tmp_path / "t.csv")) == 1


def test_a_size_that_is_refused_is_a_marked_row(api: Api, tmp_path: Path) -> None:
    api.acts = [stream(), *[refuse(400, "too long")] * 4]
    done, _ = run(api, tmp_path / "t.csv", repeats=6)
    assert (done.ok, done.failed) == (2, 4)


def test_an_endpoint_that_is_down(tmp_path: Path) -> None:
    server = Api()
    url = server.url
    server.server_close()
    path = tmp_path / "t.csv"
    with pytest.raises(DataError, match=r"3 calls in a row failed \(refused the connection\)"):
        collect(Endpoint(url, "m"), Plan((1,), (1,), 9, 6000.0, attempts=1), path, sleep=Slept())
    assert [row["status"] for row in rows_of(path)] == ["refused the connection"] * 3


def test_no_such_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **more: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(DataError, match="no such host; 0 rows"):
        collect(Endpoint("http://no-such-host/v1", "m"), Plan(), tmp_path / "t", sleep=Slept())


# Resuming


def test_a_collection_goes_on_where_it_stopped(api: Api, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    api.acts = [stream(), stream(), refuse(401)]
    with pytest.raises(DataError):
        run(api, path, output_tokens=(1, 2, 4))
    before = path.read_text()
    api.requests.clear()
    done, _ = run(api, path, output_tokens=(1, 2, 4))
    assert (done.ok, done.before) == (1, 2)
    assert len(api.requests) == 1
    assert path.read_text().startswith(before)
    assert len({(r["output_tokens"], r["repeat"]) for r in rows_of(path)}) == 3


def test_failed_rows_are_tried_again_and_kept(api: Api, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    api.acts = [refuse(500)]
    run(api, path, attempts=1)
    run(api, path)
    assert [row["status"].split(" ")[0] for row in rows_of(path)] == ["status", "ok"]


def test_a_line_that_a_crash_cut_off_is_completed(api: Api, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    run(api, path, repeats=2)
    whole = path.read_text()
    path.write_text(whole[:-20])
    done, _ = run(api, path, repeats=2)
    assert (done.before, done.ok) == (1, 1)
    assert path.read_text().startswith(whole[:-20] + "\n")
    assert len([row for row in rows_of(path) if row["status"] == "ok"]) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "no table of a collection"),
        ("precious notes", "no table of a collection"),
        ("\xff", None),
    ],
)
def test_other_files_are_left_alone(
    api: Api, tmp_path: Path, text: str, message: str | None
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message or "UTF-8"):
        run(api, path)
    assert path.read_bytes() == text.encode("latin-1")
    assert not api.requests


def test_another_model_needs_another_file(api: Api, tmp_path: Path) -> None:
    run(api, tmp_path / "t.csv")
    with pytest.raises(DataError, match="rows of model 'm', not 'n'"):
        run(api, tmp_path / "t.csv", Endpoint(api.url, "n"))
    with pytest.raises(OutputError, match="there is no folder"):
        run(api, tmp_path / "no" / "t.csv")


# The key


def test_the_key_is_sent_and_nowhere_else(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the table, not in what is printed, also when the server echoes it."""
    monkeypatch.setenv("MY_KEY", KEY)
    arguments = [
        "measure-api", "--url", api.url, "--model", "m", "--key-env", "MY_KEY", "--input-lens", "4",
        "--output-lens", "2,3", "--repeats", "1", "--max-per-minute", "6000", "--attempts", "1",
        "-o", str(tmp_path / "t.csv"),
    ]  # fmt: skip
    api.acts = [refuse(500, f"bad key {KEY}"), say({"error": {"message": f"no {KEY}"}})]
    assert program.run(arguments) == 2  # no call succeeded
    api.acts = [refuse(401, f"Bearer {KEY} is wrong")]
    assert program.run(arguments) == 2
    assert all(seen["Authorization"] == f"Bearer {KEY}" for seen in api.headers_seen)
    out, err = capsys.readouterr()
    assert f"no call succeeded; {tmp_path / 't.csv'} holds what went wrong" in err
    everything = out + err + "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    assert KEY not in everything
    assert "(key)" in everything
    assert KEY not in repr(Endpoint(api.url, "m", key=KEY))


def test_a_debug_traceback_has_no_key(api: Api, tmp_path: Path) -> None:
    api.acts = [refuse(401, f"{KEY}")]
    done = subprocess.run(
        [sys.executable, "-c", "from rtsim.cli.main import main; main()", "measure-api", "--url",
         api.url, "--model", "m", "--key-env", "K", "-o", str(tmp_path / "t.csv")],
        capture_output=True, text=True, check=False,
        env={"K": KEY, "RTSIM_DEBUG": "1", "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 2
    assert "status 401" in done.stderr
    assert KEY not in done.stdout + done.stderr


# Bad input


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--url", "host/v1"), "url = 'host/v1': must be such as https://host/v1"),
        (("--url", "notaurl"), "url = 'notaurl': must be such as https://host/v1"),
        (("--url", "ftp://host/v1"), "must be such as"),
        (("--url", "http://user:pass@host/v1"), "must not hold a password"),
        (("--url", "http://host:99999/v1"), "impossible port"),
        (("--form", "chats"), "must be one of completions, chat"),
        (("--key-env", "NO_SUCH_VARIABLE"), "no such environment variable"),
        (("--input-lens", "0"), "at least 1"),
        (("--input-lens", "a"), "not a whole number"),
        (("--output-lens", ","), "at least 1"),
        (("--repeats", "0"), "at least 1"),
        (("--max-per-minute", "0"), "max_per_minute"),
        (("--max-per-minute", "nan"), "max_per_minute"),
        (("--timeout", "-1"), "timeout"),
        (("--backoff", "inf"), "backoff"),
        (("-o", "t.json"), "must end in .csv"),
    ],
)
def test_bad_input(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, str], word: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    base = ["measure-api", "--url", "http://127.0.0.1:1/v1", "--model", "m", "-o", "t.csv"]
    assert program.run([*base, *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert word in err
    assert "pass@" not in err
    assert not list(tmp_path.iterdir())


def test_prompts_differ_and_have_the_length() -> None:
    prompts = {prompt_of(p, 4, r) for p in (8, 64) for r in range(5)}
    assert len(prompts) == 10
    assert len({prompt[:20] for prompt in prompts}) == 10
    assert [len(prompt_of(n, 1, 1).split()) for n in (1, 5, 300)] == [1, 5, 300]


def test_keys_that_no_header_carries() -> None:
    with pytest.raises(SpecError, match="no header can carry") as caught:
        Endpoint("http://h/v1", "m", key=f"{KEY}\n")
    assert KEY not in str(caught.value)
