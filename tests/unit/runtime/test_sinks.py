"""Metrics reach the tracker that was asked for, under the name and step that they have in metrics.jsonl."""

import importlib.util
import json
import sqlite3
import sys
from contextlib import closing
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sobre.errors import ConfigError
from sobre.runtime.metrics import Metrics, read_metrics
from sobre.runtime.sinks import check_installed, opened


class Heard(ModuleType):
    """A tracker that remembers what it is told."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.util.spec_from_loader(name, loader=None)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, called: str) -> Any:
        if called.startswith("__"):
            raise AttributeError(called)
        return lambda *args, **more: self.calls.append((called, args, more))

    def said(self, called: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, more) for name, args, more in self.calls if name == called]


def run(name: str, tmp_path) -> None:
    with opened([name], tmp_path / "mine", {"seed": 7}) as sinks:
        metrics = Metrics(tmp_path / "metrics.jsonl", sinks)
        metrics.add("sft", 3, loss=0.5, tokens=64, load_LE=[[1, 2]], mtp_loss=None, right={"sorting": 0.25})
        metrics.flush()
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["loss"] == 0.5


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_and_trackio_get_numbers_by_stage_and_the_end(name, tmp_path, monkeypatch):
    heard = Heard(name)
    monkeypatch.setitem(sys.modules, name, heard)
    run(name, tmp_path)
    assert heard.said("init") == [((), {"project": "sobre", "name": "mine", "config": {"seed": 7}})]
    sent = {"sft/step": 3, "sft/loss": 0.5, "sft/tokens": 64.0, "sft/right/sorting": 0.25}
    assert heard.said("log") == [((sent,), {})]
    assert heard.calls[-1][0] == "finish"


def test_mlflow_gets_numbers_at_their_step_and_the_end_of_a_run_that_fails(tmp_path, monkeypatch):
    heard = Heard("mlflow")
    monkeypatch.setitem(sys.modules, "mlflow", heard)
    run("mlflow", tmp_path)
    assert heard.said("start_run") == [((), {"run_name": "mine"})]
    sent = {"sft/loss": 0.5, "sft/tokens": 64.0, "sft/right/sorting": 0.25}
    assert heard.said("log_metrics") == [((sent,), {"step": 3})]
    with pytest.raises(ZeroDivisionError), opened(["mlflow"], tmp_path, {}):
        raise ZeroDivisionError
    assert len(heard.said("end_run")) == 2


def test_tensorboard_gets_a_writer_for_each_stage_that_hides_what_runs_again(tmp_path, monkeypatch):
    begun, scalars = [], []

    def writer(folder: str, purge_step: int) -> SimpleNamespace:
        begun.append((folder, purge_step))
        return SimpleNamespace(
            add_scalar=lambda *said: scalars.append(said), flush=lambda: None, close=lambda: begun.append("closed")
        )

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    run("tensorboard", tmp_path)
    assert begun == [(str(tmp_path / "mine" / "tensorboard" / "sft"), 3), "closed"]
    assert scalars == [("loss", 0.5, 3), ("tokens", 64.0, 3), ("right/sorting", 0.25, 3)]


def test_the_real_tensorboard_reads_back_what_was_written(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run("tensorboard", tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "mine" / "tensorboard" / "sft")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["loss", "right/sorting", "tokens"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 0.5)]


def test_the_real_mlflow_gives_back_what_was_sent_from_a_folder_of_files(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install mlflow")
    run("mlflow", tmp_path)
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("sobre").experiment_id])
    assert found.data.metrics == {"sft/loss": 0.5, "sft/tokens": 64.0, "sft/right/sorting": 0.25}
    assert [(metric.step, metric.value) for metric in client.get_metric_history(found.info.run_id, "sft/loss")] == [
        (3, 0.5)
    ]
    assert (found.info.run_name, found.info.status) == ("mine", "FINISHED")
    assert [file.path for file in client.list_artifacts(found.info.run_id)] == ["recipe.json"]


def test_the_real_trackio_gives_back_what_was_sent_from_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))  # read when it is imported
    trackio = pytest.importorskip("trackio", reason="trackio is not installed: pip install trackio")
    run("trackio", tmp_path)
    (found,) = trackio.Api().runs("sobre")
    assert (found.name, found.config["seed"]) == ("mine", 7)
    with closing(sqlite3.connect(tmp_path / "store" / "sobre.db")) as file:
        lines = [json.loads(line) for (line,) in file.execute("select metrics from metrics")]
    assert lines == [{"sft/step": 3, "sft/loss": 0.5, "sft/tokens": 64.0, "sft/right/sorting": 0.25}]


def test_what_a_tracker_prints_is_kept_from_standard_output(tmp_path, monkeypatch, capsys):
    loud = Heard("trackio")
    loud.init = lambda **named: print("initialized")
    loud.finish = lambda: print("finished")
    monkeypatch.setitem(sys.modules, "trackio", loud)
    run("trackio", tmp_path)
    assert capsys.readouterr() == ("", "initialized\nfinished\n")


def test_a_tracker_that_is_not_installed_is_refused_with_what_is(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "a spec" if name == "trackio" else None)
    check_installed(["trackio"])
    with pytest.raises(ConfigError, match="--watch wandb: it is not installed .*; here are: trackio"):
        check_installed(["trackio", "wandb"])
