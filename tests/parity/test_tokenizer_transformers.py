"""`transformers.AutoTokenizer` on a saved folder gives our ids, for text and for chats."""

import json
import random
from pathlib import Path

import pytest

from sobre.tokenizer.bpe import QWEN2
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

ARCHITECTURES = {"deepseek_v3": "DeepseekV3ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
PARTS = [*"aZ .,'!\n\r\t\u3000é中²٣\U0001f600()-=", "the ", "don't", "\n\n", " \n ", "e\u0301", "123", "所以"]


def texts(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(PARTS, k=rng.randint(0, 14))) for _ in range(n)]


@pytest.fixture(scope="module", params=["", *ARCHITECTURES])
def pair(request, tmp_path_factory):
    """Our tokenizer, and theirs on its folder, with and without a model's config beside it."""
    folder: Path = tmp_path_factory.mktemp("model")
    ours = Tokenizer.train([*texts(400, seed=0)] * 2, TokenizerConfig(vocab_size=400))
    ours.save(folder, max_len=512)
    if request.param:
        config = {"model_type": request.param, "architectures": [ARCHITECTURES[request.param]]}
        (folder / "config.json").write_text(json.dumps(config))
    return ours, transformers.AutoTokenizer.from_pretrained(folder)


def test_text_gives_the_same_ids_and_comes_back(pair):
    ours, theirs = pair
    for text in texts(400, seed=1):
        assert theirs(text).input_ids == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text


def test_special_tokens_have_the_same_ids(pair):
    ours, theirs = pair
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (ours.bos_id, ours.eos_id, ours.pad_id)
    assert theirs.convert_tokens_to_ids(["<｜User｜>", "<think>"]) == [ours.user_id, ours.think_open_id]
    assert len(theirs) == ours.vocab_size
    assert theirs.model_max_length == 512


def random_chat(rng: random.Random, text: list[str]) -> list[dict[str, str]]:
    chat = [{"role": "system", "content": rng.choice(text)} for _ in range(rng.choice([0, 0, 1, 2]))]
    for _ in range(rng.randint(1, 3)):
        chat.append({"role": "user", "content": rng.choice(text)})
        match rng.randrange(4):
            case 0:
                answer = {"content": rng.choice(text)}
            case 1:
                answer = {"content": f"<think>{rng.choice(text)}</think>{rng.choice(text)}"}
            case 2:
                answer = {"content": rng.choice(text), "reasoning_content": rng.choice(text)}
            case _:
                continue
        chat.append({"role": "assistant", **answer})
    return chat


def test_the_saved_template_gives_the_ids_of_render(pair):
    ours, theirs = pair
    rng, text = random.Random(2), texts(300, seed=3)
    for _ in range(150):
        chat, prompt, thinking = random_chat(rng, text), rng.random() < 0.5, rng.random() < 0.5
        ids = theirs.apply_chat_template(chat, add_generation_prompt=prompt, thinking=thinking, return_dict=False)
        assert ids == ours.render(chat, generation_prompt=prompt, thinking=thinking)


@pytest.mark.parametrize(
    "chat",
    [
        [{"role": "robot", "content": "x"}],
        [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}],
        [{"role": "assistant", "content": "<think>open"}],
        [{"role": "assistant", "content": "<think>a</think>b", "reasoning_content": "c"}],
    ],
)
def test_the_saved_template_refuses_what_render_refuses(pair, chat):
    from jinja2 import TemplateError

    with pytest.raises(TemplateError):
        pair[1].apply_chat_template(chat)


def test_the_pre_tokenizer_is_the_one_of_qwen2():
    from transformers.models.qwen2 import tokenization_qwen2

    assert tokenization_qwen2.PRETOKENIZE_REGEX == QWEN2


def test_chats_with_tools_give_the_same_ids(pair):
    ours, theirs = pair
    tools = [{"type": "function", "function": {"name": "add", "description": "é 加", "parameters": {"type": "object"}}}]
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": "é"}'}}
    chat = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "so", "reasoning_content": "I ask", "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "c", "content": "2"},
        {"role": "assistant", "content": "2"},
    ]
    for system in ([], [{"role": "system", "content": "a"}, {"role": "system", "content": "b"}]):
        for given in (tools, []):
            rendered = theirs.apply_chat_template([*system, *chat], tools=given or None, add_generation_prompt=True)
            assert rendered["input_ids"] == ours.render([*system, *chat], tools=given, generation_prompt=True)
