"""The command line: `sobre VERB ...`. Each verb is one module of `app`, imported only when it is chosen.

Exit codes: 0 done, 1 failed, 2 asked wrongly, 130 interrupted. What a user can cause is one clear line on standard
error; SOBRE_DEBUG=1 shows the traceback behind it. Nothing here, nor the --help of any verb, imports torch.
"""

import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from sobre import __version__
from sobre.errors import ConfigError, SobreError

VERBS = {
    "run": "the whole story: a budget becomes a reasoning model",
    "plan": "what does a budget buy? (or: what would this model cost?)",
    "config": "show, compare or check resolved recipes",
    "tokenizer": "one stage: train the tokenizer",
    "data": "one stage: read the data into token shards",
    "pretrain": "one stage: pretraining",
    "sft": "one stage: supervised fine-tuning",
    "rl": "one stage: reinforcement learning",
    "dpo": "one stage: learning from pairs of answers",
    "distill": "one stage: a student taught by another model",
    "eval": "score a model on held-out problems and text",
    "chat": "talk with a model; its thoughts are dimmed",
    "serve": "an OpenAI-compatible endpoint and a plain page",
    "convert": "weights in and out: a model folder written anew",
    "launch": "the job file of a recipe: Slurm, Kubernetes, SkyPilot, Ray",
    "bench": "our benchmarks, each against a named peer or limit",
    "report": "write the report of a run again",
    "ledger": "what did a run cost?",
    "doctor": "look at this machine",
}


def verbs() -> dict[str, str]:
    """The verbs whose module exists, with their one-line help."""
    return {verb: text for verb, text in VERBS.items() if find_spec(f"sobre.app.{verb}")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"sobre {__version__}")
        return 0
    return _guarded(argv[0], argv[1:])


def usage() -> str:
    """The page that `sobre --help` shows."""
    known = verbs()
    width = max(map(len, known), default=0)
    lines = [f"  {verb:<{width}}  {text}" for verb, text in known.items()]
    return "\n".join(
        [
            "sobre: tell it what you can spend",
            "",
            "usage: sobre VERB [RECIPE ...] [--dotted.key value ...]      sobre VERB --help      sobre --version",
            "",
            *lines,
        ]
    )


def run_verb(verb: str, argv: list[str]) -> int:
    """Import the verb's module and call its `main`."""
    known = verbs()
    if verb not in known:
        near = difflib.get_close_matches(verb, known, n=3, cutoff=0.5)
        wanted = f"perhaps {' or '.join(near)}" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"no verb {verb!r}; {wanted}")
    return int(import_module(f"sobre.app.{verb}").main(argv))


def _guarded(verb: str, argv: list[str]) -> int:
    """Turn what went wrong into one line and an exit code."""
    try:
        code = run_verb(verb, argv)
        sys.stdout.flush()
        return code
    except SobreError as error:
        if os.environ.get("SOBRE_DEBUG") == "1":
            traceback.print_exc()
        print(f"sobre {verb}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print(f"sobre {verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left, as in `sobre config show demo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
