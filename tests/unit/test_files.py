"""A user's own seeds and questions."""

import pytest

from tskd.errors import TaskError
from tskd.records import Message, Prompt
from tskd.tasks.files import Files


def seeds(tmp_path, text, name="seeds.jsonl"):
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return Files(str(file)).seed_prompts()


def test_prompts_and_conversations_can_be_seeds(tmp_path):
    text = (
        '{"prompt": "one"}\n\n{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "two"}]}\n'
    )
    assert [Prompt("one"), Prompt("two", (Message("system", "s"),))] == seeds(tmp_path, text)


def test_a_text_file_has_one_prompt_a_line_and_repeats_count_once(tmp_path):
    assert [Prompt("a"), Prompt("b")] == seeds(tmp_path, "\ufeffa\nb\na\n", "seeds.txt")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "a"}\n{oops', "line 2: not JSON"),
        ('["a"]', "line 1: a list where an object"),
        ('{"question": "a"}', "line 1: no text in `prompt` or `messages` \\(found: question\\)"),
        ('{"prompt": "  "}', "line 1: no text"),
        ('{"messages": []}', "line 1: `messages` must be a list of at least one"),
        ('{"messages": [{"role": "user"}]}', "line 1: each message needs a `role`"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "line 1: the last message is the assistant's"),
        ("", "has no prompts"),
        ('{"prompt": "a"}\n{"prompt": "a"}', "All 2 seeds in .* are the same"),
    ],
)
def test_a_bad_seeds_file_is_one_line_that_names_file_and_line(tmp_path, text, said):
    with pytest.raises(TaskError, match=said) as error:
        seeds(tmp_path, text)
    assert "seeds.jsonl" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TaskError, match=r"no file .*nowhere\.jsonl"):
        Files(str(tmp_path / "nowhere.jsonl")).seed_prompts()


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "s.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaskError, match="cannot be read as UTF-8"):
        Files(str(tmp_path / "s.jsonl")).seed_prompts()


def test_an_answer_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "h.jsonl").write_text('{"prompt": "a", "answer": 3}')
    with pytest.raises(TaskError, match="`answer` is 3"):
        Files("unused", str(tmp_path / "h.jsonl")).questions()
