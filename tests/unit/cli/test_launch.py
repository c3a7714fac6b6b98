"""Job files: what the scheduler reads is valid, and what the machines would run is the right line."""

import ast
import subprocess
from pathlib import Path

import pytest
import yaml

from sobre.app.jobs import SYSTEMS
from sobre.cli import main

RECIPE = ["nano", "--nodes", "4", "--per-node", "2", "--parallel.shards", "8", "--data", "my texts"]
FLAGS = {
    "k8s": ["--image", "me/sobre:1", "--claim", "runs"],
    "sky": ["--out", "/shared/nano"],
    "ray": ["--out", "/shared/nano"],
}
LINE = (
    "--nnodes 4 --nproc-per-node 2 --max-restarts 3 --rdzv-backend c10d --rdzv-id 77 --rdzv-endpoint node1:29500"
    " -m sobre run nano --parallel.shards 8 --data my texts"
)


def launch(kind: str, *flags: str) -> str:
    assert main(["launch", kind, *RECIPE, *FLAGS.get(kind, []), *flags]) == 0
    return Path(f"nano{SYSTEMS[kind].ending}").read_text()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def programs(folder: Path, **scripts: str) -> dict[str, str]:
    """An environment whose PATH begins with these small programs."""
    folder.mkdir()
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def run(script: str, environment: dict[str, str]) -> str:
    return subprocess.run(["bash", "-c", script], env=environment, check=True, capture_output=True, text=True).stdout


SCHEDULER = {
    "srun": 'while [[ "$1" == --* ]]; do shift; done; "$@"',
    "scontrol": """case "$1 $2" in
        "show hostnames") echo node1; echo node2;;
        "show job") echo "JobState=$STATE";;
        *) echo "scontrol $@";;
    esac""",
    "torchrun": 'echo "$@"',
}


def test_the_sbatch_script_asks_for_the_machines_and_starts_torchrun_on_each(elsewhere: Path) -> None:
    text = launch("slurm")
    asked = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --nodes=4", "#SBATCH --ntasks-per-node=1", "#SBATCH --requeue"} <= set(asked)
    assert text.splitlines()[1 : 1 + len(asked)] == asked, "sbatch stops reading at the first command"
    assert "gpus" not in text
    assert "#SBATCH --gpus-per-node=h100:2" in launch("slurm", "--chip", "h100")
    environment = programs(elsewhere / "bin", **SCHEDULER) | {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[1-4]"}
    assert run(text, environment).strip() == f"{LINE} --out out/nano"
    (elsewhere / "out/nano").mkdir(parents=True)
    (elsewhere / "out/nano/config.json").write_text("{}")
    assert run(text, environment).strip() == f"{LINE} --out out/nano --resume", "a requeued job goes on"


def failing(elsewhere: Path, state: str, restarts: str, *, ends: str = "exit 7") -> tuple[int, str]:
    """What a Slurm job does whose torchrun fails: its exit code, and what it said."""
    again = {"SLURM_RESTART_COUNT": restarts} if restarts else {}
    folder = elsewhere / f"bin{len(list(elsewhere.iterdir()))}"
    environment = programs(folder, **SCHEDULER | {"torchrun": ends}) | again
    environment |= {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[1-4]", "STATE": state}
    done = subprocess.run(["bash", "nano.sbatch"], env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_a_slurm_job_that_failed_is_requeued_three_times_and_not_when_somebody_ended_it(elsewhere: Path) -> None:
    launch("slurm")
    for restarts in ("", "2"):
        code, said = failing(elsewhere, "RUNNING", restarts)
        assert (code, said.splitlines()[-1]) == (7, "scontrol requeue 77")
    for state, restarts in (("RUNNING", "3"), ("CANCELLED", ""), ("TIMEOUT", "1")):
        assert failing(elsewhere, state, restarts) == (7, "")
    assert failing(elsewhere, "RUNNING", "", ends="exit 0") == (0, "")


def test_with_fewer_machines_allowed_a_run_outlives_one_that_is_lost(elsewhere: Path) -> None:
    elastic = ["--min-nodes", "2", "--parallel.shards", "0"]
    text = launch("slurm", *elastic)
    assert "#SBATCH --no-kill" in text
    assert "srun --no-kill --kill-on-bad-exit=0 torchrun --nnodes 2:4 --nproc-per-node 2" in text
    assert "--min-nodes" not in text
    assert failing(elsewhere, "RUNNING", "")[1].endswith("scontrol requeue 77\n")
    finishes = "mkdir -p out/nano/state; touch out/nano/state/finished.json; exit 7"
    assert failing(elsewhere, "RUNNING", "", ends=finishes) == (0, "")
    for kind in ("k8s", "sky", "ray"):
        assert "torchrun --nnodes 2:4 --nproc-per-node 2" in launch(kind, *elastic)
    assert "SystemExit(min(map(code, tasks)))" in launch("ray", *elastic)
    assert "SystemExit(max(map(code, tasks)))" in launch("ray")
    plain = launch("slurm")
    assert "--no-kill" not in plain
    assert "finished.json" not in plain


def test_the_job_of_kubernetes_is_indexed_and_its_pods_meet_at_the_first(elsewhere: Path) -> None:
    service, job = yaml.safe_load_all(launch("k8s", "--chip", "NVIDIA-H100"))
    assert service["spec"]["clusterIP"] is None or service["spec"]["clusterIP"] == "None"
    assert (job["spec"]["completions"], job["spec"]["completionMode"]) == (4, "Indexed")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 2}
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "runs"
    assert container["volumeMounts"][0]["mountPath"] == "/runs"
    assert {"name": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "value": "1"} in container["env"]
    line = run(container["args"][0], programs(elsewhere / "bin", torchrun='echo "$@"')).strip()
    assert line == LINE.replace("77", "nano").replace("node1", "nano-0.nano") + " --out /runs/nano"


def test_the_task_of_skypilot_starts_torchrun_on_each_machine(elsewhere: Path) -> None:
    task = yaml.safe_load(launch("sky", "--chip", "H100"))
    assert (task["num_nodes"], task["resources"]) == (4, {"accelerators": "H100:2"})
    environment = programs(elsewhere / "bin", torchrun='echo "$@"')
    environment |= {"SKYPILOT_NODE_IPS": "node1\nnode2", "SKYPILOT_TASK_ID": "77"}
    assert run(task["run"], environment).strip() == f"{LINE} --out /shared/nano"


def test_the_driver_of_ray_is_python_that_runs_one_line_on_each_machine(elsewhere: Path) -> None:
    tree = ast.parse(launch("ray"))
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "LINE"
    }
    line = run(values["LINE"].replace("{head}", "node1"), programs(elsewhere / "bin", torchrun='echo "$@"')).strip()
    assert line == LINE.replace("77", "nano") + " --out /shared/nano"


def test_samplers_of_a_job_on_ray_are_this_clusters() -> None:
    samplers = ["--rl.samplers.workers", "2"]
    assert "--rl.samplers.workers 2 --rl.samplers.address auto --out" in launch("ray", *samplers)
    assert "--rl.samplers.workers 2 --out" in launch("slurm", *samplers)
    named = [*samplers, "--rl.samplers.address", "head:6379"]
    assert "--rl.samplers.address head:6379 --out" in launch("ray", *named)


def test_a_run_that_begins_with_a_model_is_launched_as_it_is_typed() -> None:
    assert "--data 'my texts' --model Qwen/Qwen3-0.6B --out" in launch("slurm", "--model", "Qwen/Qwen3-0.6B")


def test_a_job_is_submitted_only_when_asked(elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    environment = programs(elsewhere / "bin", sbatch='echo "submitted $@"')
    monkeypatch.setenv("PATH", environment["PATH"])
    launch("slurm")
    said = capfd.readouterr().out
    assert "submitted" not in said
    assert "# written to nano.sbatch; to submit it: sbatch nano.sbatch" in said
    launch("slurm", "--submit")
    assert "submitted nano.sbatch" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["slurm", "nano", "--nodes", "3", "--parallel.shards", "2"],
            "parallel.shards=2 does not divide the 3 processes",
        ),
        (["slurm", "nano", "--nodes", "2", "--min-nodes", "3"], "--min-nodes 3 must lie in 1..2"),
        (
            ["slurm", "nano", "--nodes", "4", "--min-nodes", "2", "--parallel.shards", "4"],
            "with 2 of 4 nodes, which --min-nodes allows: parallel.shards=4 does not divide the 2 processes",
        ),
        (["slurm", "demo", "--nodes", "8"], "holds 4 rows of data.seq_len=256, and 8 processes"),
        (["slurm", "nano", "--time", "a day"], "must be H:M:S"),
        (["k8s", "nano"], "k8s needs --image"),
        (["k8s", "nano", *FLAGS["k8s"], "--out", "here"], "must be absolute"),
        (["sky", "nano", "--nodes", "2"], "--out out/nano must be absolute"),
        (["slurm", "nano", "--name", "My Run"], "cannot name a job"),
        (["pbs", "nano"], "'pbs' to launch on; usage: sobre launch slurm"),
    ],
)
def test_what_cannot_be_launched_is_refused_and_nothing_is_written(arguments, message, elsewhere: Path, capfd) -> None:
    assert main(["launch", *arguments]) == 2
    assert message in capfd.readouterr().err
    assert not list(elsewhere.iterdir())


def test_submitting_without_the_scheduler_says_so(monkeypatch: pytest.MonkeyPatch, elsewhere: Path, capfd) -> None:
    monkeypatch.setenv("PATH", str(elsewhere))
    assert main(["launch", "slurm", *RECIPE, "--submit"]) == 1
    assert "sbatch is not on this machine" in capfd.readouterr().err
