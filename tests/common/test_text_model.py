"""Reading a model's text side from its directory."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from common.errors import BadRequest, ConfigError
from common.text import TextModel
from tests.common.made_tokenizers import byte_level

ROOT = Path(__file__).parents[2]
TEMPLATE = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
CHAT = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def directory(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def write(directory, name, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_text(text)


def test_a_template_in_the_tokenizers_config(directory):
    write(
        directory,
        "tokenizer_config.json",
        {"chat_template": TEMPLATE, "eos_token": {"content": "<|im_end|>"}},
    )
    assert TextModel.load(directory).render_chat(CHAT) == "Hi<|im_end|>"


def test_a_template_in_its_own_file_comes_first(directory):
    write(directory, "tokenizer_config.json", {"chat_template": "old"})
    write(directory, "chat_template.jinja", "new")
    assert TextModel.load(directory).render_chat(CHAT) == "new"


def test_named_templates(directory):
    named = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{{ tools | length }} tools"},
    ]
    write(directory, "tokenizer_config.json", {"chat_template": named})
    model = TextModel.load(directory)
    assert model.render_chat(CHAT) == "plain"
    assert model.render_chat(CHAT, tools=[{"type": "function"}]) == "1 tools"


def test_additional_templates(directory):
    write(directory, "chat_template.jinja", "plain")
    write(directory, "additional_chat_templates/tool_use.jinja", "tools")
    assert TextModel.load(directory).render_chat(CHAT, tools=[{}]) == "tools"


def test_without_a_template_there_is_no_chat(directory):
    with pytest.raises(BadRequest, match="/v1/completions"):
        TextModel.load(directory).render_chat(CHAT)


def test_the_models_vocabulary_may_be_padded(directory):
    size = TextModel.load(directory).vocab_size
    write(directory, "config.json", {"vocab_size": size + 64})
    assert TextModel.load(directory).vocab_size == size + 64


def test_sampling_defaults_of_the_models_authors(directory):
    write(directory, "generation_config.json", {"temperature": 0.6, "top_k": 20, "do_sample": True})
    assert TextModel.load(directory).sampling_defaults == {"temperature": 0.6, "top_k": 20}


def test_special_tokens_named_only_in_the_config(directory):
    write(directory, "tokenizer_config.json", {"eos_token": "<tool_call>"})
    model = TextModel.load(directory)
    assert model.decode(model.encode("a<tool_call>b"), skip_special_tokens=True) == "ab"


def test_truncation_in_the_file_is_not_ours(tmp_path):
    from tokenizers import Tokenizer

    limited = Tokenizer.from_str(byte_level().to_str())
    limited.enable_truncation(4)
    limited.enable_padding(length=4)
    limited.save(str(tmp_path / "tokenizer.json"))
    assert len(TextModel.load(tmp_path).encode("a b c d e f g h i j")) > 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "[1]"),
        ("tokenizer_config.json", "{"),
        ("chat_template.jinja", "{% for %}"),
    ],
)
def test_what_cannot_be_used_is_one_line(directory, name, content):
    write(directory, name, content)
    with pytest.raises(ConfigError) as caught:
        TextModel.load(directory)
    assert "\n" not in caught.value.message
    assert str(directory) not in caught.value.message


def test_an_empty_directory(tmp_path):
    with pytest.raises(ConfigError, match="no usable tokenizer"):
        TextModel.load(tmp_path)


def test_old_formats_are_converted(tmp_path):
    """No tokenizer.json: vocabulary and merges as GPT-2 had them."""
    content = json.loads(byte_level().to_str())["model"]
    write(tmp_path, "vocab.json", content["vocab"])
    merges = "\n".join(" ".join(pair) for pair in content["merges"])
    write(tmp_path, "merges.txt", "#version: 0.2\n" + merges + "\n")
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    model = TextModel.load(tmp_path)
    assert model.vocabulary.is_bytewise
    assert model.decode(model.encode("Hello 日本")) == "Hello 日本"


def test_the_bundled_model_reads():
    model = TextModel.load(ROOT / "models" / "xpyd-demo")
    prompt = model.render_chat(CHAT)
    ids = model.encode(prompt, add_special_tokens=False)
    assert model.decode(ids) == prompt
    assert model.vocab_size > max(ids)


def test_other_threads_run_while_a_long_text_is_encoded():
    model = TextModel(byte_level())
    encoding = threading.Thread(target=model.encode, args=("Hello wörld " * 40_000,))
    encoding.start()
    ticks = 0
    while encoding.is_alive():
        time.sleep(0.001)
        ticks += 1
    assert ticks > 5


@pytest.mark.parametrize("module", ["common.text", "common.api.app", "common.metrics"])
def test_import_is_light(module):
    code = (
        f"import sys, {module}; bad = {{'torch', 'transformers', 'numpy'}} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
