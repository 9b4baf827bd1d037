"""A user's own seeds and questions: what the files may say, odd line ends, odd values."""

import json

import pytest

from tskd.errors import TaskError
from tskd.records import Message, Prompt, Question
from tskd.tasks.files import Files


@pytest.fixture
def write(tmp_path):
    def write(data, name="f.jsonl"):
        (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        return str(tmp_path / name)

    return write


def questions(path):
    return Files("unused", path).questions()


def test_held_out_lines_may_bring_answer_and_split(write):
    lines = '{"prompt": "a"}\n{"prompt": "b", "answer": "1"}\n{"prompt": "c", "answer": null, "split": "general"}'
    expected = [Question(Prompt("a"), None), Question(Prompt("b"), "1"), Question(Prompt("c"), None, "general")]
    assert expected == questions(write(lines))


def test_without_a_held_out_file_there_are_no_questions():
    assert Files("unused").questions() == []


def test_private_examples_are_questions_of_a_file_of_their_own(write):
    lines = '{"prompt": "a", "answer": "1"}\n{"prompt": "b"}'
    task = Files("seeds.jsonl", write('{"prompt": "c"}', "held_out.jsonl"), write(lines, "own.jsonl"))
    assert ([Question(Prompt("a"), "1"), Question(Prompt("b"), None)], "own") == (task.examples(), task.label)
    assert [] == Files("seeds.jsonl").examples()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", r"own\.jsonl has no examples"),
        ('{"prompt": "a"}\n{"prompt": " THE  code?"}', r"own\.jsonl, line 2: this is asked in .*held_out\.jsonl too"),
        ('{"prompt": "a"}\n{"prompt": "b", "answer": 3}', r"own\.jsonl, line 2: `answer` is 3"),
    ],
)
def test_private_examples_that_are_none_or_held_out_too_are_refused(write, lines, said):
    held_out = write('{"prompt": "the code?", "answer": "1"}', "held_out.jsonl")
    with pytest.raises(TaskError, match=said):
        Files("seeds.jsonl", held_out, write(lines, "own.jsonl")).examples()


@pytest.mark.parametrize("answer", [3, True, ["a"], {"a": 1}])
def test_an_answer_that_is_no_text_is_refused_with_its_line(write, answer):
    with pytest.raises(TaskError, match=r"f\.jsonl, line 2: `answer` is"):
        questions(write('{"prompt": "a"}\n' + json.dumps({"prompt": "b", "answer": answer})))


def test_a_split_that_is_null_is_the_private_one(write):
    assert questions(write('{"prompt": "a", "split": null}'))[0].split == "private"


def test_a_conversation_keeps_its_turns_as_context(write):
    turns = [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", " last ")]
    line = json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})
    assert [Prompt("last", tuple(Message(*turn) for turn in turns[:3]))] == Files(write(line)).seed_prompts()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["no mark", "byte order mark"])
def test_line_ends_and_byte_order_marks_of_any_system_are_read(write, end, mark):
    expected = [Prompt("a"), Prompt("b")]
    assert expected == Files(write(mark + f'{{"prompt": "a"}}{end}{{"prompt": "b"}}{end}'.encode())).seed_prompts()
    assert expected == Files(write(mark + f"a{end}b{end}".encode(), "f.txt")).seed_prompts()


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85"])
def test_only_line_feeds_end_a_line(write, inside):
    # JSON allows these within a string, where `str.splitlines` would cut it.
    line = json.dumps({"prompt": f"a{inside}b"}, ensure_ascii=False)
    assert [Prompt(f"a{inside}b")] == Files(write(line)).seed_prompts()


def test_the_line_that_is_named_counts_empty_ones(write):
    with pytest.raises(TaskError, match=r"f\.jsonl, line 4: not JSON"):
        Files(write('{"prompt": "a"}\n\n\n{')).seed_prompts()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{oops", "not JSON"),
        ('{"prompt": "a", "n": ' + "1" * 5000 + "}", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('["a"]', "a list where an object"),
        ("null", "a NoneType where an object"),
        ("3", "a int where an object"),
        ('"text"', "a str where an object"),
        ("{}", r"no text in `prompt` or `messages` \(found: nothing\)"),
        ('{"question": "a"}', r"no text in `prompt` or `messages` \(found: question\)"),
        ('{"prompt": "  "}', "no text"),
        ('{"prompt": null}', "no text"),
        ('{"prompt": ["a"]}', "no text"),
        ('{"messages": [{"role": "user", "content": " "}]}', "no text"),
        ('{"messages": []}', "`messages` must be a list of at least one"),
        ('{"messages": "a"}', "`messages` must be a list of at least one"),
        ('{"messages": ["a"]}', "each message needs a `role`"),
        ('{"messages": [{"role": "user"}]}', "each message needs a `role`"),
        ('{"messages": [{"role": "tool", "content": "a"}]}', "each message needs a `role`"),
        ('{"messages": [{"role": "user", "content": ["a"]}]}', "each message needs a `role`"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "the last message is the assistant's"),
        ('{"prompt": "\\ud800"}', "half of a surrogate pair"),
    ],
    ids=lambda text: text[:40],
)
def test_a_malformed_line_is_one_line_that_names_it_and_what_is_wrong(write, line, said):
    with pytest.raises(TaskError, match=rf"f\.jsonl, line 2: {said}") as error:
        Files(write('{"prompt": "a"}\n' + line)).seed_prompts()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"f\.jsonl has no prompts"),
        ('{"prompt": "a"}\n{"prompt": "a"}', r"All 2 seeds in .*f\.jsonl are the same"),
        (b"\xff\xfe\x00", r"f\.jsonl cannot be read as UTF-8"),
    ],
)
def test_a_file_without_different_seeds_is_refused_by_name(write, text, said):
    with pytest.raises(TaskError, match=said):
        Files(write(text)).seed_prompts()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TaskError, match=r"no file .*nowhere\.jsonl"):
        Files(str(tmp_path / "nowhere.jsonl")).seed_prompts()


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(TaskError, match="cannot be read"):
        Files(str(tmp_path)).seed_prompts()


def test_a_single_seed_is_enough(write):
    assert [Prompt("a")] == Files(write("a", "f.txt")).seed_prompts()


def test_repeats_count_once_and_the_same_words_in_another_context_are_no_repeat(write):
    lines = '{"prompt": "a"}\n{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]}'
    expected = [Prompt("a"), Prompt("a", (Message("system", "s"),))]
    assert expected == Files(write(f"{lines}\n{lines}")).seed_prompts()


def test_what_is_private_in_a_users_file_is_not_known():
    assert Files("unused").is_private(Prompt("a")) is None


@pytest.mark.parametrize("split", ["base", "teacher", "target"])
def test_a_split_does_not_take_the_name_of_a_models_accuracy(write, split):
    with pytest.raises(TaskError, match=f"line 1: `split` is '{split}', which names a model's accuracy"):
        questions(write(f'{{"prompt": "a", "split": "{split}"}}'))
