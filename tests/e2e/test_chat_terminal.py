"""`sobre chat` as one types it: one answer, a pipe, a conversation in a terminal, Ctrl-C, Ctrl-D."""

import codecs
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from sobre.models.checkpoint import save_model
from sobre.models.config import DenseConfig, GQAConfig, ModelConfig, RopeConfig
from sobre.models.decoder import Decoder
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dense model folder with random weights."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = Tokenizer.train(["Three plus four is seven. 三加四等于七。"] * 3, TokenizerConfig(vocab_size=300))
    attention, ffn = GQAConfig(n_heads=2, n_kv_heads=1, head_dim=16), DenseConfig(d_ff=64)
    sizes = {"vocab_size": tokenizer.vocab_size, "d_model": 32, "n_layers": 2, "max_len": 4000}
    model = Decoder(ModelConfig(attention=attention, ffn=ffn, rope=RopeConfig(interleaved=False), **sizes))
    model.init_weights(0)
    save_model(model, path)
    tokenizer.save(path, max_len=4000)
    return path


def chat(folder, *arguments, stdin=None):
    command = [sys.executable, "-m", "sobre", "chat", str(folder), *arguments]
    where = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **where)


def test_one_prompt_gets_one_answer_with_its_figures(folder):
    done = chat(folder, "--prompt", "3+4?", "--max-tokens", "12", "--seed", "1")
    assert done.returncode == 0
    assert re.search(r"\d+ tokens \(\d+ of thought\) · [\d,]+ tokens/s · [\d.e-]+ USD", done.stderr)
    assert done.stdout.strip() == "", "this model never stops thinking, and thoughts are no answer"


def test_a_seed_repeats_the_answer_and_json_holds_all_of_it(folder):
    one, two = (chat(folder, "--json", "--max-tokens", "12", "--seed", "7", stdin="3+4?") for _ in range(2))
    answer = json.loads(one.stdout)
    assert answer["reasoning_content"] == json.loads(two.stdout)["reasoning_content"]
    assert answer["finish_reason"] == ("length" if answer["usage"]["completion_tokens"] == 12 else "stop")
    assert answer["usage"]["cost_usd"] > 0


def test_a_folder_that_is_no_model_and_an_empty_question_are_said(folder):
    done = chat(folder.parent, "--prompt", "x")
    assert done.returncode == 1
    assert "is no model folder" in done.stderr
    assert str(folder) in done.stderr
    assert chat(folder, stdin="  \n").returncode == 2
    assert chat(folder, "--temperature", "-1", "--prompt", "x").returncode == 2
    too_long = chat(folder, "--prompt", "x", "--max-tokens", "5000")
    assert too_long.returncode == 1
    assert "4000" in too_long.stderr


class Terminal:
    """A chat in a terminal of its own."""

    def __init__(self, *command):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background hands down that it is ignored
            os.execv(sys.executable, [sys.executable, "-m", "sobre", "chat", *command])
        self.said = ""
        self.decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode

    def until(self, pattern, timeout_s=40):
        """Read until the pattern comes; the text read since the last call."""
        deadline = time.monotonic() + timeout_s
        text = ""
        while not re.search(pattern, text):
            assert time.monotonic() < deadline, f"{pattern!r} never came; there was {text!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    text += self.decode(os.read(self.fd, 65536))
                except OSError:  # the other end has closed
                    break
        self.said += text
        return text

    def press(self, key, pattern, times=20):
        """Press a key until the pattern comes: the prompt is there a moment before the terminal is read."""
        for _ in range(times - 1):
            self.type(key)
            try:
                return self.until(pattern, timeout_s=2)
            except AssertionError:
                continue
        self.type(key)
        return self.until(pattern)

    def type(self, text):
        os.write(self.fd, text.encode())

    def end(self):
        """The exit code; a chat that has not ended within ten seconds is killed."""
        for _ in range(100):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.1)
        else:
            os.kill(self.pid, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def test_a_conversation_dims_thoughts_survives_ctrl_c_and_ends_with_ctrl_d(folder):
    terminal = Terminal(str(folder), "--temperature", "0")
    try:
        terminal.until("Ctrl-D leaves.*\n.*› ")
        terminal.type("think for long\n")
        terminal.until(r"\x1b\[2m[^\n]*\n?[^\n]*\x1b\[2m")  # the thought has begun, and it is dimmed
        os.kill(terminal.pid, signal.SIGINT)
        terminal.until(r"stopped[^›]*› ")
        terminal.press("\x03", "Ctrl-D leaves[^›]*› ")
        terminal.type("\x04")
    finally:
        code = terminal.end()
    assert code == 0
    assert "Traceback" not in terminal.said
