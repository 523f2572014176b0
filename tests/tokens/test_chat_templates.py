"""The key `chat_template`: as text, as a file, as a template of trl; and what is said where it is none of them."""

from importlib.resources import files
from pathlib import Path

import pytest

from simpo_trainer.errors import SimPOError
from simpo_trainer.tokens.chat_templates import resolve_chat_template
from simpo_trainer.tokens.templates import probe_template
from toy import CHATML, toy_tokenizer

QWEN3 = (files("trl") / "chat_templates" / "qwen3.jinja").read_text()
# A loop that nobody ends, on the third line.
BROKEN = "{{ bos_token }}\n{% for m in messages %}\n{{ m.content }}{% endif %}\n"


def test_text():
    assert resolve_chat_template(CHATML) == CHATML
    assert resolve_chat_template("{{ messages[0].content }}") == "{{ messages[0].content }}"
    # The extensions that transformers compiles with.
    tagged = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
    assert resolve_chat_template(tagged) == tagged


@pytest.mark.parametrize("name", ["chatml.jinja", "template.txt", "a file"])
def test_file(tmp_path, monkeypatch, name):
    (tmp_path / name).write_text(CHATML)
    assert resolve_chat_template(str(tmp_path / name)) == CHATML
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_chat_template(f"~/{name}") == CHATML
    monkeypatch.chdir(tmp_path)
    assert resolve_chat_template(name) == CHATML


def test_template_of_trl():
    assert resolve_chat_template("trl:qwen3") == QWEN3
    assert probe_template(toy_tokenizer(resolve_chat_template("trl:qwen3")), {}).token == "<|im_end|>"


def test_file_that_does_not_exist(tmp_path):
    (tmp_path / "chatml.jinja").write_text(CHATML)
    with pytest.raises(
        SimPOError, match=r"chatm.jinja' does not exist; in its folder there is chatml.jinja\. .* a file that"
    ):
        resolve_chat_template(str(tmp_path / "chatm.jinja"))
    with pytest.raises(
        SimPOError, match=r"other' does not exist\. chat_template must be the text of .* \{\{ \}\} or \{% %\}"
    ):
        resolve_chat_template(str(tmp_path / "other"))
    with pytest.raises(
        SimPOError, match="none/chatml.jinja' does not exist, and neither does its folder. chat_template"
    ):
        resolve_chat_template(str(tmp_path / "none" / "chatml.jinja"))
    with pytest.raises(SimPOError, match="is a folder. chat_template must be"):
        resolve_chat_template(str(tmp_path))
    with pytest.raises(SimPOError, match="The chat template file 'chatml' does not exist.* trl:NAME"):
        resolve_chat_template("chatml")
    with pytest.raises(SimPOError, match="chat_template is empty. chat_template must be"):
        resolve_chat_template("")
    with pytest.raises(SimPOError, match="file 'You are .* does not exist"):
        resolve_chat_template("You are a template without expressions. " * 20)


def test_file_that_is_no_text(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"\xff\xfe{{")
    with pytest.raises(SimPOError, match="model.bin cannot be read: .*Set chat_template to a text file"):
        resolve_chat_template(str(tmp_path / "model.bin"))


def test_template_that_does_not_compile(tmp_path):
    with pytest.raises(
        SimPOError, match="^chat_template does not compile: line 3: .*'endif'.*: '{{ m.content }}{% endif %}'"
    ):
        resolve_chat_template(BROKEN)
    (tmp_path / "broken.jinja").write_text(BROKEN)
    with pytest.raises(SimPOError, match="chat template .*broken.jinja does not compile: line 3: .*Correct that line"):
        resolve_chat_template(str(tmp_path / "broken.jinja"))
    with pytest.raises(SimPOError, match="chat_template does not compile: line 1: "):
        resolve_chat_template("{{ messages[0].content")


def test_name_that_trl_does_not_have():
    with pytest.raises(SimPOError, match="trl ships no chat template 'qwen33'. Set chat_template to .*trl:qwen3[.,]"):
        resolve_chat_template("trl:qwen33")
    with pytest.raises(SimPOError, match="no chat template 'zzz'. .*trl:cohere, .*trl:smolvlm_training"):
        resolve_chat_template("trl:zzz")
    assert not Path("trl:zzz").exists()
