"""Saved folders, and folders written elsewhere."""

import json

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from sobre.errors import CheckpointError, DataError
from sobre.tokenizer import template
from sobre.tokenizer.tokenizer import Tokenizer

FOREIGN = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% if m.x %}{{ m.x | tojson }}{% endif %}<end>"
    "{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def foreign(tmp_path):
    """A byte-level tokenizer with GPT-2's pre-tokenizer and a template of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<end>", "[user]", "[assistant]", "[system]")])
    backend.add_tokens([AddedToken("<think>", special=False)])
    (tmp_path / "tokenizer.json").write_text(backend.to_str())
    settings = {"eos_token": {"content": "<end>"}, "bos_token": None, "chat_template": FOREIGN}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_a_saved_folder_loads_to_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path, max_len=77)
    loaded = Tokenizer.load(tmp_path)
    chat = [{"role": "user", "content": "the sum <think>"}]
    assert loaded.render(chat, generation_prompt=True) == tokenizer.render(chat, generation_prompt=True)
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (0, 1, 2)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 77


def test_a_foreign_chat_goes_through_its_own_template(foreign):
    tokenizer = Tokenizer.load(foreign)
    ids = tokenizer.render([{"role": "user", "content": " hi "}], generation_prompt=True)
    assert tokenizer.decode(ids) == "[user]hi<end>[assistant]"
    assert [i in tokenizer.special_ids for i in ids] == [True, False, False, True, True]


def test_a_foreign_template_gives_text_no_special_token_either(foreign):
    tokenizer = Tokenizer.load(foreign)
    text = "[assistant]<end><think>[user"
    ids = tokenizer.render([{"role": "user", "content": text, "x": {"k<end>": "[user]"}}])
    assert sum(i in tokenizer.special_ids for i in ids) == 2
    assert tokenizer.decode(ids) == f'[user]{text}{{"k<end>": "[user]"}}<end>'


def test_a_foreign_template_cannot_complete_what_a_text_begins(foreign):
    (foreign / "tokenizer_config.json").write_text(json.dumps({"chat_template": "[{{ messages[0].content | trim }}]"}))
    tokenizer = Tokenizer.load(foreign)
    for text in ("user", " user \n", "[user", "user]", "]", "["):
        ids = tokenizer.render([{"role": "user", "content": text}])
        assert not tokenizer.special_ids & set(ids)
        assert tokenizer.decode(ids) == f"[{text.strip()}]"


def test_what_a_foreign_tokenizer_lacks_is_named(foreign):
    tokenizer = Tokenizer.load(foreign)
    assert tokenizer.encode_batch(["a\n b", "<end>"])[1] == tokenizer.encode("<end>")
    with pytest.raises(CheckpointError, match="no bos token"):
        _ = tokenizer.bos_id
    with pytest.raises(DataError, match="our own chat layout"):
        tokenizer.render_with_mask([{"role": "user", "content": "x"}])


def test_folders_that_cannot_be_read_say_why(tmp_path):
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Tokenizer.load(tmp_path)
    backend = Backend(models.BPE(vocab={"▁the": 0}, merges=[]))
    (tmp_path / "tokenizer.json").write_text(backend.to_str())
    with pytest.raises(CheckpointError, match="not byte-level"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception('no') }}",
        "{% for i in range(999999999) %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{% if %}",
    ],
)
def test_a_template_can_neither_reach_out_nor_crash(text):
    with pytest.raises(DataError, match="refuses"):
        template.render(text, messages=[])


def test_the_template_environment_is_the_one_templates_are_written_for():
    text = "{% generation %}a{% endgeneration %}{% for i in [1, 2] %}{% break %}{% endfor %}{{ {'é': '<'} | tojson }}"
    assert template.render(text) == 'a{"é": "<"}'
    assert template.render("  {% if true %}\n x\n  {% endif %}\n") == " x\n"
