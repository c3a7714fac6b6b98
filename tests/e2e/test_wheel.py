"""The built wheel in a venv of its own, away from the clone: recipes, page and schemas are in it, and the verbs run.

What sobre needs is lent by this interpreter's packages; sobre itself is the wheel's alone.
"""

import json
import os
import subprocess
import sys
import sysconfig
import urllib.request
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="hatchling is not installed: pip install 'sobre[dev]'")

ROOT = Path(__file__).resolve().parent.parent.parent
NANO = ["run", "nano", "--pretrain.steps", "1", "--sft.steps", "1", "--rl.steps", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a venv that holds the wheel."""
    place = tmp_path_factory.mktemp("away")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)], cwd=ROOT, check=True)
    (wheel,) = place.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place / "venv")], check=True)
    site = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(place / "venv")}))
    with zipfile.ZipFile(wheel) as files:
        files.extractall(site)
    lent = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "lent.pth").write_text("\n".join(lent))
    return place


def sobre(place: Path, *argv: str) -> list[str]:
    return [str(place / "venv" / "bin" / "python"), "-P", "-m", "sobre", *argv]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SOBRE"))}
    return kept | {"OMP_NUM_THREADS": "1", "SOBRE_NO_REEXEC": "1"}


def called(place: Path, *argv: str) -> str:
    done = subprocess.run(
        sobre(place, *argv), cwd=place, env=environment(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_runs_chats_and_serves_away_from_the_clone(place: Path):
    where = [str(place / "venv" / "bin" / "python"), "-P", "-c", "import sobre; print(sobre.__file__)"]
    found = subprocess.run(where, cwd=place, env=environment(), capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).is_relative_to(place / "venv")
    report = json.loads(called(place, *NANO, "--json"))
    assert list(report["stages"]) == ["pretrain", "sft", "rl"]
    assert (place / "out" / "nano" / "report.html").is_file()
    assert json.loads(called(place, "chat", "out/nano/rl", "--prompt", "Sort 3 1 2", "--max-tokens", "8", "--json"))
    server = subprocess.Popen(
        sobre(place, "serve", "out/nano/rl", "--port", "0"),
        cwd=place,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = next(word for line in server.stderr for word in line.split() if word.startswith("http://"))
        with urllib.request.urlopen(url, timeout=60) as page:
            assert b"<html" in page.read()
        body = {"model": "rl", "messages": [{"role": "user", "content": "Sort 3 1 2"}], "max_tokens": 8}
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] > 0
    finally:
        server.terminate()
        assert server.wait(timeout=60) == 0
        server.stderr.close()


def test_what_is_no_python_is_in_the_wheel_too(place: Path):
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        inside = {name for name in files.namelist() if name.startswith("sobre/")}
    source = ROOT / "src"
    needed = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    assert needed == inside
