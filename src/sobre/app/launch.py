"""sobre launch slurm | k8s | sky | ray: the job file of a recipe, for machines that others run.

sobre launch slurm demo --nodes 4 --parallel.shards 0      writes demo.sbatch and shows it
sobre launch slurm demo --nodes 4 --submit                 and hands it to sbatch
"""

import re
import shutil
import subprocess
from dataclasses import dataclass, fields
from pathlib import Path, PurePath

from sobre.app.jobs import SYSTEMS, JobSpec
from sobre.app.layout import check_stages
from sobre.app.run import MODEL_FLAG
from sobre.config.recipe import Recipe, load_recipe
from sobre.errors import ConfigError, RunError
from sobre.rl.config import RLConfig
from sobre.runtime.files import write_text

USAGE = f"usage: sobre launch {' | '.join(SYSTEMS)} [RECIPE ...] [--nodes N] [--submit] [flags]"


@dataclass(frozen=True)
class LaunchOptions:
    """Flags of `sobre launch`; what else is given goes on to `sobre run`."""

    nodes: int = 1
    """Machines."""
    min_nodes: int = 0
    """Machines with which the run goes on when others are lost; 0 needs all. The layout must fit any number between
    (--parallel.shards 0 does)."""
    per_node: int = 1
    """Processes on each machine; with --chip, one for each chip of it."""
    chip: str = ""
    """Accelerator to ask for, as the scheduler calls it; none is asked for without."""
    out: str = ""
    """Folder of the run, which all machines must see; out/NAME when not given (k8s: /runs/NAME)."""
    time: str = "24:00:00"
    """Longest time, H:M:S; what is not done then goes on with the same job file."""
    image: str = ""
    """Container with sobre in it; k8s needs one."""
    claim: str = ""
    """k8s: the volume claim that holds the folder."""
    file: Path | None = None
    """Where to write the job file; NAME.sbatch, NAME.k8s.yaml, NAME.sky.yaml or NAME.ray.py when not given."""
    submit: bool = False
    """Hand the file to sbatch, kubectl, sky or ray."""


def main(argv: list[str]) -> int:
    """sobre launch: write the job, show it, submit it if asked."""
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if not argv or argv[0] not in SYSTEMS:
        raise ConfigError(f"{'nothing' if not argv else repr(argv[0])} to launch on; {USAGE}")
    kind, rest = argv[0], argv[1:]
    recipe, options = load_recipe(rest, LaunchOptions, prog=f"sobre launch {kind}", shortcuts=MODEL_FLAG)
    system = SYSTEMS[kind]
    text = system.write(spec(kind, recipe, options, passed_on(rest)))
    file = options.file or Path(f"{recipe.name}{system.ending}")
    write_text(file, text)
    print(text, end="")
    line = [*system.submit, str(file)]
    if options.submit:
        submit(line)
    else:
        print(f"# written to {file}; to submit it: {' '.join(line)}")
    return 0


def spec(kind: str, recipe: Recipe, options: LaunchOptions, arguments: tuple[str, ...]) -> JobSpec:
    """What is to run where. Raises ConfigError for what cannot."""
    for name in ("nodes", "per_node"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(options, name)} must be 1 or more")
    if not re.fullmatch(r"\d+:[0-5]\d:[0-5]\d", options.time):
        raise ConfigError(f"--time {options.time} must be H:M:S, such as 24:00:00")
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,51}[a-z0-9])?", recipe.name):
        raise ConfigError(f"name={recipe.name!r} cannot name a job: small letters, digits and hyphens, at most 53")
    if kind == "k8s" and not (options.image and options.claim):
        raise ConfigError("k8s needs --image (with sobre in it) and --claim (the volume claim that holds the folder)")
    least = options.min_nodes or options.nodes
    if not 1 <= least <= options.nodes:
        raise ConfigError(f"--min-nodes {options.min_nodes} must lie in 1..{options.nodes}, the --nodes; 0 needs all")
    for nodes in range(least, options.nodes + 1):
        check_processes(recipe, nodes, options)
    out = PurePath(options.out or (f"/runs/{recipe.name}" if kind == "k8s" else f"out/{recipe.name}"))
    if not out.is_absolute() and (kind == "k8s" or (kind in ("sky", "ray") and options.nodes > 1)):
        raise ConfigError(f"--out {out} must be absolute: a folder in one that every machine mounts")
    return JobSpec(
        name=recipe.name,
        nodes=options.nodes,
        min_nodes=least,
        per_node=options.per_node,
        arguments=(*arguments, *joining(recipe)) if kind == "ray" else arguments,
        out=out,
        chip=options.chip,
        time=options.time,
        image=options.image,
        claim=options.claim,
    )


def check_processes(recipe: Recipe, nodes: int, options: LaunchOptions) -> None:
    """Refuse a recipe that so many of the machines cannot run."""
    try:
        recipe.parallel.check(nodes * options.per_node)
        check_stages(recipe, recipe.stages, nodes * options.per_node)
    except ConfigError as error:
        if nodes == options.nodes:
            raise
        raise ConfigError(f"with {nodes} of {options.nodes} nodes, which --min-nodes allows: {error}") from None


def joining(recipe: Recipe) -> tuple[str, ...]:
    """Flags by which the samplers of a job on a Ray cluster are this cluster's, not those of a Ray of its own."""
    sections = {stage: getattr(recipe, stage) for stage in recipe.stages}
    local = [
        n
        for n, s in sections.items()
        if isinstance(s, RLConfig) and s.samplers.workers and s.samplers.address == "local"
    ]
    return tuple(word for name in local for word in (f"--{name}.samplers.address", "auto"))


def passed_on(argv: list[str]) -> tuple[str, ...]:
    """The arguments without this verb's own flags."""
    own = {f"--{field.name.replace('_', '-')}" for field in fields(LaunchOptions)}
    kept: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, _ = argument.replace("_", "-").partition("=") if argument.startswith("--") else ("", "", "")
        if flag not in own and flag != "--no-submit":
            kept.append(argument)
        elif not equals and "submit" not in flag:
            next(arguments, None)
    return tuple(kept)


def submit(line: list[str]) -> None:
    """Run the scheduler's own program."""
    if shutil.which(line[0]) is None:
        raise RunError(f"{line[0]} is not on this machine; where it is: {' '.join(line)}")
    done = subprocess.run(line)
    if done.returncode:
        raise RunError(f"{' '.join(line)} failed with {done.returncode}")
