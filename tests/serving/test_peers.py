"""The comparison with other servers: what is pinned, how servers are started and ended, how figures become a table."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from pathlib import Path

import pytest

from benchmarks.load.films import ask
from benchmarks.peers.__main__ import _turned, parsed
from benchmarks.peers.bare import BareModel, BareModelError
from benchmarks.peers.catalogue import NEEDS, OURS, PEERS, SERVERS, Start
from benchmarks.peers.drive import closed, embedding, opened, question, status_of
from benchmarks.peers.environments import pinned_version, requirements
from benchmarks.peers.process import NotStartedError, free_port, marked, running
from benchmarks.peers.table import markdown, medians
from benchmarks.section import put_section

HOUSE = Path(__file__).resolve().parents[2]
PIN = re.compile(r"[a-z0-9][a-z0-9.-]*==[0-9][^ ]*( ; .*)?")
PEER = PEERS[1]
# A server that answers a film with a vector, starts a child that outlives it, and refuses half a film.
SERVER = """
import http.server, json, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        text = json.dumps({"data": [{"embedding": [0.6, 0.8]}]}).encode()
        self.send_response(200 if b"d2hvbGU" in body else 400)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *arguments): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.mark.parametrize("name", NEEDS)
def test_requirements_are_pins_without_a_host(name: str) -> None:
    lines = requirements(name).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not PIN.fullmatch(line)] == []
    wanted = [re.sub(r"\[.*\]", "", line) for line in NEEDS[name].lines.splitlines() if "==" in line]
    assert set(wanted) <= {line.partition(" ")[0] for line in lines}


def test_every_peer_runs_the_torch_of_our_lock() -> None:
    locked = next(line for line in (HOUSE / "requirements.lock").read_text().splitlines() if line.startswith("torch=="))
    assert {pinned_version(name, "torch") for name in NEEDS} == {locked.split()[0].partition("==")[2]}


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_command_names_what_is_there(peer: object, tmp_path: Path) -> None:
    assert isinstance(peer, type(PEER))
    command = peer.command(Start(Path("/python"), tmp_path, 1, "bfloat16", tmp_path))
    assert all(Path(word).exists() for word in command if word.startswith(str(SERVERS)))
    assert peer.environment in ("", *NEEDS)
    assert (peer.name == OURS) == (not peer.environment)


def test_a_server_is_asked_and_ended_with_what_it_started(tmp_path: Path) -> None:
    port = free_port()
    good = question(PEER, b"whole", "base64", port)
    bad = question(PEER, b"cut", "base64", port, is_broken=True)
    with running([sys.executable, "-c", SERVER, str(port)], {}, port, good, tmp_path / "log", 30.0) as served:
        environment = Path(f"/proc/{served.process}/environ").read_bytes().split(b"\0")
        mark = next(one.partition(b"=")[2].decode() for one in environment if one.startswith(b"VESALIUS_BENCH_RUN="))
        assert len(marked(mark)) == 2
        assert embedding(served.url, good) == [0.6, 0.8]
        run = closed(served.url, [good], 2, 0.3, bad=[bad], share=0.5)
        assert run.rate > 0
        assert run.refused > 0
        assert run.lost == 0
        assert opened(served.url, [good], 20.0, 0.3).p99_s is not None
        assert asyncio.run(status_of(served.url, good)) == 200
    assert marked(mark) == []


def test_a_server_that_ends_is_said_with_its_last_words(tmp_path: Path) -> None:
    port = free_port()
    asked = ask(b"", "base64", f"127.0.0.1:{port}")
    with (
        pytest.raises(NotStartedError, match="no such model"),
        running([sys.executable, "-c", "raise SystemExit('no such model')"], {}, port, asked, tmp_path / "log", 30.0),
    ):
        pass


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    port = free_port()
    asked = ask(b"", "base64", f"127.0.0.1:{port}")
    with (
        pytest.raises(NotStartedError, match="in time"),
        running([sys.executable, "-c", "import time; time.sleep(60)"], {}, port, asked, tmp_path / "log", 0.5),
    ):
        pass


def test_a_bare_model_that_ends_is_given_up(tmp_path: Path) -> None:
    before = threading.active_count()
    model = BareModel(tmp_path / "nothing", "float32")
    with pytest.raises(BareModelError):
        model.ask("bare", tmp_path, 0.1, 1)
    assert threading.active_count() <= before + 1


def test_rounds_begin_elsewhere_and_leave_none_out() -> None:
    firsts = [_turned(PEERS, number)[0].name for number in range(3)]
    assert firsts[0] == OURS
    assert len(set(firsts)) == 3
    assert set(_turned(PEERS, 2)) == set(PEERS)


def test_the_command_is_read_and_a_wrong_case_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = parsed(["--clients", "4,8", "--case", "multipart:2048", "--", "--devices", "cpu"])
    assert (chosen.clients, chosen.case, chosen.options) == ((4, 8), [("multipart", 2048)], ["--devices", "cpu"])
    with pytest.raises(SystemExit):
        parsed(["--case", "gif:9"])
    assert "is no case" in capsys.readouterr().err


def test_medians_become_a_table_between_markers(tmp_path: Path) -> None:
    rows = [{"rate_4": 1.0, "p50_1/bare": None}, {"rate_4": 3.0, "p50_1/bare": None}, {"rate_4": 2.0, "p50_1/bare": None}]
    assert medians(rows) == {"rate_4": 2.0, "p50_1/bare": None}
    found = {
        "hardware": "a machine", "servers": {"vesalius": "`vesalius serve`"}, "missing": {"ray": "not installed: no"},
        "plan": {"model": "a tower", "precision": "float32", "rounds": 3, "seconds": 1.0, "clients": [4]},
        "cases": [{"size": 320, "form": "base64", "servers": {"vesalius": medians(rows)}, "failed": {}}],
    }  # fmt: skip
    page = tmp_path / "benchmarks.md"
    page.write_text("# Benchmarks\n\nbefore\n", encoding="utf-8")
    for _ in range(2):
        put_section("peers", markdown(found), page)
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- begin peers -->") == 1
    assert "before" in text
    assert "| films a second, 4 clients | 2 |" in text
    assert "| median at one client over the bare call with decode | - |" in text
    assert "- not measured: ray: not installed: no" in text
