"""The judge of general questions: a model of this run, a folder or a service, asked for a grade by a rubric."""

from collections.abc import Sequence

from sobre.app.session import Session
from sobre.app.teacher import open_answerer
from sobre.engine.engine import Engine
from sobre.eval.answer import Answerer, Sampling
from sobre.rl.config import GeneralConfig
from sobre.tasks.rubric import read_grade


class ModelGrader:
    """Opened when it is first asked, in the process that asks; greedy, so that a model of ours grades alike again."""

    def __init__(self, session: Session, cfg: GeneralConfig) -> None:
        self._session, self._cfg = session, cfg
        self._open: tuple[Answerer, Engine | None] | None = None
        self.flops = 0.0

    def grade(self, prompts: Sequence[str]) -> list[float | None]:
        """The grade of each prompt, from 0 to 1; None where the judge gave none."""
        replies, flops = self._session.processes.decide(lambda: self._ask(prompts))
        self.flops += flops
        return [read_grade(reply) for reply in replies]

    def _ask(self, prompts: Sequence[str]) -> tuple[list[str], float]:
        cfg = self._cfg
        self._open = self._open or open_answerer(self._session, cfg.judge, cfg.model_name, cfg.key_env)
        answerer, engine = self._open
        before = engine.stats.flops if engine is not None else 0.0
        how = Sampling(max_tokens=cfg.judge_tokens, temperature=0.0, top_p=1.0)
        replies = answerer.answer(prompts, 1, how)
        return [reply.text for (reply,) in replies], engine.stats.flops - before if engine is not None else 0.0
