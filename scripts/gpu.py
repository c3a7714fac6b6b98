"""Every GPU test and benchmark in one command, under nine minutes, without network, with the torch of this machine.

    make gpu                                results in bench-results/gpu
    make gpu WHEELS=/path/to/wheels         packages that are missing come from there

Uses this interpreter and its torch; nothing is installed into it. Wheels are unpacked into a folder beside the results.
What is missing is said, and what can run runs. Exit code 1 when a part failed or could not run.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 520.0
"""For everything together: nine minutes, less the time to write results."""
TESTS_S = 240.0
NEEDED = {  # module to import: package to install
    "torch": "torch",
    "numpy": "numpy",
    "pydantic": "pydantic",
    "tyro": "tyro",
    "rich": "rich",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "pytest": "pytest",
    "pytest_timeout": "pytest-timeout",
}


def main() -> int:
    """Prepare, test, measure; each part writes its own files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("bench-results/gpu"))
    parser.add_argument("--wheels", type=Path, help="folder of wheels for what is missing")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LIMIT_S
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
    if args.wheels:
        env["PYTHONPATH"] += os.pathsep + str(unpack(args.wheels, out / "site"))
    missing = [name for module, name in NEEDED.items() if not _finds(module, env)]
    facts = {**environment(env), "missing": missing}
    (out / "environment.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))
    if missing:
        print(f"missing: {', '.join(missing)}; put their wheels into a folder and name it: make gpu WHEELS=folder")
    results = {
        "tests": run(
            ["-m", "pytest", "tests/gpu", "-p", "no:cacheprovider", f"--junitxml={out / 'tests.xml'}"],
            out / "tests.log",
            env,
            min(TESTS_S, deadline - time.monotonic()),
        ),
        "bench": run(
            ["-m", "sobre", "bench", "gpu", "--out", str(out / "bench")],
            out / "bench.log",
            env,
            deadline - time.monotonic(),
        ),
    }
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    print(f"written to {out}")
    return int(any(result["exit_code"] for result in results.values()))


def unpack(wheels: Path, site: Path) -> Path:
    """Install the wheels of a folder into `site`, without network and without touching the interpreter's packages."""
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        sys.exit(f"no wheels in {wheels}")
    quiet = ["-q", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *quiet, *files], check=True)
    return site


def environment(env: dict[str, str]) -> dict[str, str]:
    """What the figures depend on."""
    probe = (
        "import torch; print(torch.__version__);"
        "print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'no CUDA device')"
    )
    found = subprocess.run([sys.executable, "-c", probe], env=env, capture_output=True, text=True)
    torch, device = (found.stdout.split("\n") + ["", ""])[:2] if found.returncode == 0 else ("absent", "unknown")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {"python": platform.python_version(), "torch": torch, "device": device, "commit": commit or "unknown"}


def run(arguments: list[str], log: Path, env: dict[str, str], limit_s: float) -> dict[str, float | int | str]:
    """Run one part with a time limit; its output goes to `log` and its last line to the result."""
    began = time.monotonic()
    with log.open("w") as file:
        try:
            command = [sys.executable, *arguments]
            code = subprocess.run(command, cwd=ROOT, env=env, stdout=file, stderr=file, timeout=limit_s).returncode
        except subprocess.TimeoutExpired:
            code = 124
    lines = log.read_text(errors="replace").strip().splitlines()
    return {"exit_code": code, "seconds": round(time.monotonic() - began, 1), "last_line": lines[-1] if lines else ""}


def _finds(module: str, env: dict[str, str]) -> bool:
    probe = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([sys.executable, "-c", probe], env=env).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
