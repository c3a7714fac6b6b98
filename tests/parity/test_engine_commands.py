"""Our command lines in the argument parsers of vLLM and SGLang, where they are installed."""

import argparse

import pytest

from sobre.serve.command import command


def test_vllm_reads_its_command_line_as_meant():
    arguments = pytest.importorskip("vllm.entrypoints.common.cli_args")
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = arguments.make_arg_parser(FlexibleArgumentParser(allow_abbrev=False))
    for max_context in (0, 100):
        line = command("vllm", "org/m", "name", 5, max_context)
        assert line[:2] == ["vllm", "serve"]
        read = parser.parse_args(line[2:])
        assert (read.model_tag, read.host, read.port, read.served_model_name) == ("org/m", "127.0.0.1", 5, ["name"])
        assert read.max_model_len == (max_context or None)


def test_sglang_reads_its_command_line_as_meant():
    arguments = pytest.importorskip("sglang.srt.server_args")
    parser = argparse.ArgumentParser(allow_abbrev=False)
    arguments.ServerArgs.add_cli_args(parser)
    for max_context in (0, 100):
        line = command("sglang", "org/m", "name", 5, max_context)
        assert line[:3] == ["python", "-m", "sglang.launch_server"]
        read = parser.parse_args(line[3:])
        assert (read.model_path, read.host, read.port, read.served_model_name) == ("org/m", "127.0.0.1", 5, "name")
        assert read.context_length == (max_context or None)
