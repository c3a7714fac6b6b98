"""Every GPU test and benchmark in one command, under nine minutes, without network, with the torch of this machine.

    make gpu                                results in bench-results/gpu
    make gpu WHEELS=/path/to/wheels         packages that are missing come from there

Uses this interpreter and its torch; nothing is installed into it, and sobre's own dependencies are not needed: models,
training, engine and planner run on torch and numpy. Wheels are unpacked into a folder beside the results. Each part is
a process of its own and writes its own file; a part that fails, or for which no time is left, is said, and the others
run. Without a GPU the same parts run in tiny sizes. Exit code 1 when a part failed or could not run.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 525.0
"""For everything together: nine minutes, less the time to write results."""
NEEDED = {"torch": "torch", "numpy": "numpy", "pytest": "pytest", "pytest_timeout": "pytest-timeout"}
"""Module to import: package to install."""
WELCOME = {"triton": "triton", "transformers": "transformers", "trl": "trl"}
"""Used when they are there."""
NEEDS = {"transformers": "transformers"}
"""Parts that are set beside a package, and left out without it."""
TESTS = ["tests/gpu", "tests/unit/kernels/test_triton.py"]
PARTS: dict[str, float] = {
    "tests": 120.0,
    "peak": 30.0,
    "kernels": 45.0,
    "train": 60.0,
    "dense": 45.0,
    "train-1b": 75.0,
    "decode": 60.0,
    "prefill": 40.0,
    "rl": 60.0,
    "fp8": 90.0,
    "transformers": 75.0,
    "recompute": 45.0,
    "compiled": 120.0,
}
"""In this order, what is aimed at first; the most seconds of each, of which all together have `LIMIT_S`."""


def main() -> int:
    """Prepare, test, measure; each part writes its own files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("bench-results/gpu"))
    parser.add_argument("--wheels", type=Path, help="folder of wheels for what is missing")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="these alone")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LIMIT_S
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1", "SOBRE_NO_REEXEC": "1"}
    if args.wheels:
        env["PYTHONPATH"] += os.pathsep + str(unpack(args.wheels, out / "site"))
    facts = environment(env)
    (out / "environment.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))
    if facts["missing"]:
        print(
            f"missing: {', '.join(facts['missing'])}; put their wheels into a folder and name it: make gpu WHEELS=..."
        )
    if facts["absent"]:
        print(f"not here, and left out: {', '.join(facts['absent'])}")
    if not facts["device"]:
        print("no accelerator: everything runs on the CPU in tiny sizes, and the figures say nothing of a GPU")
    results = {}
    for part in args.parts:
        left = deadline - time.monotonic()
        if NEEDS.get(part) in facts["absent"]:
            results[part] = {"exit_code": 0, "last_line": f"left out: {NEEDS[part]} is not here"}
        elif left > 5:
            results[part] = run(part, out, env, min(PARTS[part], left))
        else:
            results[part] = {"exit_code": 124, "last_line": "no time was left"}
        print(f"{part:12} {json.dumps(results[part])}", flush=True)
        (out / "results.json").write_text(json.dumps({**facts, "parts": results}, indent=2) + "\n")
    print(f"written to {out}, in {LIMIT_S - deadline + time.monotonic():.0f} s")
    return int(any(result["exit_code"] for result in results.values()))


def unpack(wheels: Path, site: Path) -> Path:
    """Install the wheels of a folder into `site`, without network and without touching the interpreter's packages."""
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        sys.exit(f"no wheels in {wheels}")
    quiet = ["-q", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *quiet, *files], check=True)
    return site


def environment(env: dict[str, str]) -> dict[str, Any]:
    """What the figures depend on."""
    probe = (
        "import importlib.util, json, sys\n"
        f"has = lambda name: importlib.util.find_spec(name) is not None\n"
        f"needed, welcome = {NEEDED!r}, {WELCOME!r}\n"
        "found = {'missing': [p for m, p in needed.items() if not has(m)],"
        " 'absent': [p for m, p in welcome.items() if not has(m)], 'torch': None, 'device': None, 'triton': None}\n"
        "if has('torch'):\n"
        "    import torch\n"
        "    found['torch'] = torch.__version__\n"
        "    there = torch.accelerator.current_accelerator(check_available=True)\n"
        "    if there is not None:\n"
        "        module = getattr(torch, there.type)\n"
        "        found['device'] = module.get_device_name() if hasattr(module, 'get_device_name') else there.type\n"
        "if has('triton'):\n"
        "    import triton\n"
        "    found['triton'] = triton.__version__\n"
        "print(json.dumps(found))"
    )
    found = subprocess.run([sys.executable, "-c", probe], env=env, capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"this Python cannot look at itself:\n{found.stderr[-2000:]}")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    facts: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return {"python": platform.python_version(), "commit": commit or "unknown", **facts}


def run(part: str, out: Path, env: dict[str, str], limit_s: float) -> dict[str, Any]:
    """Run one part with a time limit; what it prints goes to a log, its last line and its figures to the result."""
    log, file = out / f"{part}.log", out / f"{part}.json"
    file.unlink(missing_ok=True)
    command = ["-m", "sobre.bench.gpu", part, "--out", str(file)]
    if part == "tests":
        command = ["-m", "pytest", *TESTS, "-p", "no:cacheprovider", f"--junitxml={out / 'tests.xml'}"]
    began = time.monotonic()
    with log.open("w") as stream:
        try:
            called = [sys.executable, *command]
            code = subprocess.run(called, cwd=ROOT, env=env, stdout=stream, stderr=stream, timeout=limit_s).returncode
        except subprocess.TimeoutExpired:
            code = 124
    lines = log.read_text(errors="replace").strip().splitlines()
    result = {"exit_code": code, "seconds": round(time.monotonic() - began, 1)}
    if file.is_file():
        return {**result, "figures": json.loads(file.read_text())["figures"]}
    return {**result, "last_line": lines[-1] if lines else ""}


if __name__ == "__main__":
    sys.exit(main())
