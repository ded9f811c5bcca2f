"""Public data files: from a folder of one's own or by download, whole and checked, or not at all."""

import hashlib
import http.server
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from mallowspo import data_files
from mallowspo.data_files import can_be_had, fetch, known_files
from mallowspo.errors import InputError

ROOT = Path(__file__).parents[2]
CONTENT = b"rows of data\n" * 1000


class Server(http.server.BaseHTTPRequestHandler):
    """/whole gives the file; /cut less than it promises; /other another file; /slow half of it, then nothing."""

    def do_GET(self):
        if self.path == "/gone":
            self.send_error(404, "Not Found")
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if self.path == "/slow":
            self.wfile.write(CONTENT[:6000])
            self.wfile.flush()
            self.server.half_sent.set()
            self.server.may_end.wait(30)
        else:
            whole = CONTENT.replace(b"rows", b"bits") if self.path == "/other" else CONTENT
            self.wfile.write(whole[:5000] if self.path == "/cut" else whole)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as serving:
        serving.half_sent, serving.may_end = threading.Event(), threading.Event()
        threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True).start()
        yield serving
        serving.may_end.set()
        serving.shutdown()


@pytest.fixture
def folder(tmp_path, monkeypatch, server):
    """A working folder whose list has one entry a path of the server, and one without address."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(data_files.VARIABLE, raising=False)
    entry = {"sha256": hashlib.sha256(CONTENT).hexdigest(), "bytes": len(CONTENT), "licence": "MIT", "what": "rows"}
    entries = {
        f"{name}.gz": {**entry, "url": f"http://127.0.0.1:{server.server_port}/{name}"}
        for name in ("whole", "cut", "other", "gone", "slow")
    }
    Path("config").mkdir()
    data_files.LIST.write_text(yaml.safe_dump({**entries, "local.gz": entry}))
    return tmp_path


def test_a_download_is_there_whole_and_is_not_made_twice(folder, server):
    assert fetch("whole.gz") == Path("data/whole.gz")
    assert Path("data/whole.gz").read_bytes() == CONTENT
    server.shutdown()
    assert fetch("whole.gz").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cut.gz", r"data/cut.gz: could not be downloaded from http://.*/cut \(IncompleteRead|/cut: not the file of"),
        ("other.gz", r"/other: not the file of config/data.yaml \(of the right size, sha256 .*try again"),
        ("gone.gz", r"data/gone.gz: could not be downloaded from .*/gone \(Not Found\); connect, or .*SHARED_DATA"),
        ("local.gz", r"data/local.gz: has no public address \(rows\); put it there, or set MALLOWSPO_SHARED_DATA"),
        ("hole.gz", r"config/data.yaml: no file 'hole.gz'; did you mean 'whole.gz'"),
    ],
)
def test_what_cannot_be_had_leaves_nothing(folder, name, says):
    with pytest.raises(InputError, match=says) as caught:
        fetch(name)
    assert "\n" not in str(caught.value)
    assert not list(Path("data").glob("*")) if Path("data").exists() else True


def test_the_folder_of_ones_own_comes_first_and_is_checked_too(folder, monkeypatch):
    own = folder / "own"
    own.mkdir()
    monkeypatch.setenv(data_files.VARIABLE, str(own))
    (own / "gone.gz").write_bytes(CONTENT)
    (own / "local.gz").write_bytes(CONTENT)
    assert fetch("gone.gz").read_bytes() == fetch("local.gz").read_bytes() == CONTENT
    (own / "other.gz").write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match=r"own/other.gz: not the file of .*12,999 bytes of 13,000.*mend the folder"):
        fetch("other.gz")
    assert not Path("data/other.gz").exists()


def test_a_file_that_is_there_is_kept_only_if_it_is_the_right_one(folder):
    Path("data").mkdir()
    Path("data/whole.gz").write_bytes(b"mine")
    with pytest.raises(InputError, match="data/whole.gz: not the file of .*remove it"):
        fetch("whole.gz")
    assert Path("data/whole.gz").read_bytes() == b"mine"


def test_a_killed_download_leaves_no_file(folder, server):
    command = [sys.executable, "-m", "mallowspo.cli", "fetch-data", "slow.gz"]
    with subprocess.Popen(command, env={"PYTHONPATH": str(ROOT), "PATH": ""}, stderr=subprocess.DEVNULL) as process:
        assert server.half_sent.wait(30)
        time.sleep(0.05)
        process.kill()
    assert process.returncode != 0
    assert not Path("data").exists() or not list(Path("data").iterdir())


def test_what_can_be_had(folder, monkeypatch):
    assert can_be_had("data/whole.gz"), "by its address, whether or not that answers"
    assert not can_be_had("data/local.gz") and not can_be_had("elsewhere/whole.gz") and not can_be_had("data/hole.gz")
    (folder / "local.gz").write_bytes(CONTENT)
    monkeypatch.setenv(data_files.VARIABLE, str(folder))
    assert can_be_had("data/local.gz") and can_be_had("local.gz")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sha256": "abc"}, "config/data.yaml: whole.gz: sha256: 'abc'"),
        ({"url": "ftp://x"}, "config/data.yaml: whole.gz: url: 'ftp://x'"),
        ({"size": 3}, "config/data.yaml: whole.gz: size: unknown key"),
    ],
)
def test_a_wrong_list_is_told_in_one_line(folder, change, says):
    entries = yaml.safe_load(data_files.LIST.read_text())
    data_files.LIST.write_text(yaml.safe_dump({"whole.gz": {**entries["whole.gz"], **change}}))
    with pytest.raises(InputError) as caught:
        known_files()
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_name_is_no_path(folder):
    entries = yaml.safe_load(data_files.LIST.read_text())
    data_files.LIST.write_text(yaml.safe_dump({"../whole.gz": entries["whole.gz"]}))
    with pytest.raises(InputError, match="config/data.yaml: '../whole.gz' is no name of a file"):
        known_files()


def test_the_projects_own_list(monkeypatch):
    monkeypatch.chdir(ROOT)
    files = known_files()
    assert files["hh_harmless_base_test.jsonl.gz"].bytes == 742801
    assert all("/main/" not in (file.url or "") and "/master/" not in (file.url or "") for file in files.values())
