"""Job files for those who run machines: Slurm, Kubernetes, SkyPilot, Ray. Text in, text out.

Each starts the same line on every machine: torchrun, which restarts a run whose process died, and `sobre run`, which
goes on where its folder stopped. The folder must be one that all machines see.
"""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from textwrap import dedent, indent


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What is to run where."""

    name: str
    nodes: int
    min_nodes: int
    """Machines with which the run goes on when others are lost; `nodes` where it needs all of them."""
    per_node: int
    arguments: tuple[str, ...]
    """Of `sobre run`, without the folder."""
    out: PurePath
    chip: str = ""
    """Name of the accelerator as the scheduler knows it; empty asks for none."""
    time: str = "24:00:00"
    image: str = ""
    claim: str = ""
    port: int = 29500
    restarts: int = 3
    """Of the processes, and of a job on Slurm that failed all the same."""

    @property
    def is_elastic(self) -> bool:
        return self.min_nodes < self.nodes


SETTINGS = {
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # or a restarted process finds the addresses of dead ones
    "OMP_NUM_THREADS": "1",
}


def run_line(job: JobSpec, rendezvous: str) -> str:
    """The line that every machine runs; `rendezvous` are torchrun's flags that say where the machines meet."""
    nodes = f"{job.min_nodes}:{job.nodes}" if job.is_elastic else job.nodes
    launcher = f"torchrun --nnodes {nodes} --nproc-per-node {job.per_node} --max-restarts {job.restarts}"
    return f"{launcher} {rendezvous} -m sobre run {shlex.join(job.arguments)} --out {shlex.quote(str(job.out))} $RESUME"


def meeting(job_id: str, head: str, job: JobSpec) -> str:
    """Torchrun's flags that say where the machines meet: at the first of them."""
    return f'--rdzv-backend c10d --rdzv-id "{job_id}" --rdzv-endpoint "{head}:{job.port}"'


def resume_lines(job: JobSpec) -> str:
    """Sets RESUME when the folder holds an unfinished run."""
    out = shlex.quote(str(job.out))
    return f'RESUME=""\nif [ -f {out}/config.json ]; then RESUME="--resume"; fi'


def slurm(job: JobSpec) -> str:
    """A script for sbatch. Slurm itself requeues a job whose machine failed, and not one whose program did: the script
    does, unless somebody has cancelled it or its time is over."""
    chips = f"#SBATCH --gpus-per-node={job.chip}:{job.per_node}\n" if job.chip else ""
    exports = "\n".join(f"export {key}={value}" for key, value in SETTINGS.items())
    meet = meeting("$SLURM_JOB_ID", "$HEAD", job)
    head = dedent(f"""\
        #!/bin/bash
        #SBATCH --job-name={job.name}
        #SBATCH --nodes={job.nodes}
        #SBATCH --ntasks-per-node=1
        #SBATCH --time={job.time}
        #SBATCH --requeue
        #SBATCH --open-mode=append
        #SBATCH --output={job.name}-%j.log
        """)
    keep = "#SBATCH --no-kill\n" if job.is_elastic else ""  # the others go on when a machine fails
    srun = "srun --no-kill --kill-on-bad-exit=0" if job.is_elastic else "srun --kill-on-bad-exit=1"
    ended = f"if [ -f {shlex.quote(str(job.out))}/state/finished.json ]; then CODE=0; fi"
    forgiven = f"{ended}  # a machine that was lost failed, and the run did not\n" if job.is_elastic else ""
    again = dedent(f"""\
        if [ "$CODE" -ne 0 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {job.restarts} ] &&
            [[ "$(scontrol show job "$SLURM_JOB_ID")" == *JobState=RUNNING* ]]; then
          echo "ended with $CODE; requeued, to go on from the last saved state"
          scontrol requeue "$SLURM_JOB_ID"
        fi
        exit "$CODE"
        """)
    return (
        f"{head}{keep}{chips}\nset -euo pipefail\n{exports}\n"
        'HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)\n'
        f"{resume_lines(job)}\nCODE=0\n"
        f"{srun} {run_line(job, meet)} || CODE=$?\n"
        f"{forgiven}{again}"
    )


def k8s(job: JobSpec) -> str:
    """An indexed Job, one pod a machine, and the headless service by which they find the first; for kubectl apply."""
    meet = meeting(job.name, f"{job.name}-0.{job.name}", job)
    script = indent(f"{resume_lines(job)}\nexec {run_line(job, meet)}\n", " " * 14)
    settings = "".join(
        f"            - {{name: {key}, value: {json.dumps(value)}}}\n" for key, value in SETTINGS.items()
    )
    limits = f"          resources: {{limits: {{nvidia.com/gpu: {job.per_node}}}}}\n" if job.chip else ""
    chips = f"      nodeSelector: {{nvidia.com/gpu.product: {json.dumps(job.chip)}}}\n" if job.chip else ""
    return dedent(f"""\
        apiVersion: v1
        kind: Service
        metadata: {{name: {job.name}}}
        spec:
          clusterIP: None
          publishNotReadyAddresses: true
          selector: {{job-name: {job.name}}}
        ---
        apiVersion: batch/v1
        kind: Job
        metadata: {{name: {job.name}}}
        spec:
          completions: {job.nodes}
          parallelism: {job.nodes}
          completionMode: Indexed
          backoffLimit: {job.restarts * job.nodes}
          activeDeadlineSeconds: {seconds(job.time)}
          template:
            spec:
              restartPolicy: OnFailure
              subdomain: {job.name}
        """) + (
        chips
        + f"      containers:\n        - name: {job.name}\n          image: {json.dumps(job.image)}\n"
        + '          command: ["/bin/bash", "-euc"]\n          args:\n            - |\n'
        + script
        + "          env:\n"
        + settings
        + limits
        + f"          volumeMounts: [{{name: runs, mountPath: {json.dumps(str(job.out.parent))}}}]\n"
        + f"      volumes: [{{name: runs, persistentVolumeClaim: {{claimName: {job.claim}}}}}]\n"
    )


def sky(job: JobSpec) -> str:
    """A task of SkyPilot."""
    chips, image = f"{job.chip}:{job.per_node}" if job.chip else "", f"docker:{job.image}" if job.image else ""
    resources = {"accelerators": chips, "image_id": image}
    asked = "".join(f"  {key}: {json.dumps(value)}\n" for key, value in resources.items() if value)
    settings = "".join(f"  {key}: {json.dumps(value)}\n" for key, value in SETTINGS.items())
    head = 'HEAD=$(echo "$SKYPILOT_NODE_IPS" | sed -n 1p)'
    script = indent(f"{head}\n{resume_lines(job)}\n{run_line(job, meeting('$SKYPILOT_TASK_ID', '$HEAD', job))}\n", "  ")
    return (
        f"name: {job.name}\nnum_nodes: {job.nodes}\nworkdir: .\n"
        + (f"resources:\n{asked}" if asked else "")
        + f"envs:\n{settings}setup: |\n  pip install -e .\nrun: |\n{script}"
    )


def ray(job: JobSpec) -> str:
    """A driver for `ray job submit`: one torchrun on each of so many machines of the cluster."""
    meet = meeting(job.name, "{head}", job)
    line = f"{resume_lines(job)}\nexec {run_line(job, meet)}"
    ask = {"CPU": 1, **({"GPU": job.per_node} if job.chip else {})}
    judge = "min" if job.is_elastic else "max"  # a machine that was lost failed, and the run did not
    return dedent(f'''\
        """{job.name}: one torchrun on each of {job.nodes} machines of a Ray cluster."""

        import os
        import subprocess

        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        LINE = {line!r}
        NODES, ASK = {job.nodes}, {ask!r}


        @ray.remote
        def address():
            return ray.util.get_node_ip_address()


        @ray.remote(max_retries=0)
        def work(head):
            line = LINE.replace("{{head}}", head)
            return subprocess.run(["/bin/bash", "-euc", line], env={{**os.environ, **{SETTINGS!r}}}).returncode


        ray.init()
        group = placement_group([ASK] * NODES, strategy="STRICT_SPREAD")
        ray.get(group.ready())


        def on(rank):
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
            return {{"num_cpus": ASK["CPU"], "num_gpus": ASK.get("GPU", 0), "scheduling_strategy": place}}


        def code(task):
            try:
                return abs(ray.get(task))
            except ray.exceptions.RayError as error:
                print(f"a machine is lost: {{error}}")
                return 1


        head = ray.get(address.options(**on(0)).remote())
        tasks = [work.options(**on(rank)).remote(head) for rank in range(NODES)]
        raise SystemExit({judge}(map(code, tasks)))
        ''')


def seconds(time: str) -> int:
    """Of H:M:S."""
    hours, minutes, rest = map(int, time.split(":"))
    return 3600 * hours + 60 * minutes + rest


@dataclass(frozen=True)
class System:
    """One way of running a job."""

    write: Callable[[JobSpec], str]
    ending: str
    submit: tuple[str, ...]
    """The line that submits the file, whose path comes last."""


SYSTEMS = {
    "slurm": System(slurm, ".sbatch", ("sbatch",)),
    "k8s": System(k8s, ".k8s.yaml", ("kubectl", "apply", "-f")),
    "sky": System(sky, ".sky.yaml", ("sky", "jobs", "launch", "--yes")),
    "ray": System(ray, ".ray.py", ("ray", "job", "submit", "--working-dir", ".", "--", "python")),
}
