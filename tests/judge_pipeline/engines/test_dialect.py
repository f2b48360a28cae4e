"""What a server's refusals teach about the fields it takes, and what they do not: errors may send a document back."""

from __future__ import annotations

import asyncio
import json

import pytest
from judge_servers import JudgeServer, is_check, write_prompts

from judge_pipeline.calls.call import Call, Message
from judge_pipeline.cli import main
from judge_pipeline.engines.chat_protocol import Dialect
from judge_pipeline.engines.endpoint import EndpointEngine
from judge_pipeline.engines.endpoint_errors import ErrorSaid
from judge_pipeline.engines.retries import RetryPolicy

DOCUMENT = (
    "The temperature of the seed store was logged daily; logprobs of the response_format were not. Requests to "
    "use max_completion_tokens, whose context length is too long, were filtered by our content policy."
)
SCHEMA = {"type": "object", "properties": {}}
BODY = {"model": "m", "messages": [], "temperature": 0.0, "max_tokens": 9, "seed": 3, "response_format": {}}


def call(text) -> Call:
    return Call(template="t", messages=(Message(role="user", content=text),), json_schema=SCHEMA)


def ask(server, texts):
    """Replies one after another, and how the lane asks in the end."""

    async def main():
        engine = EndpointEngine([server.url], "judge", "key", policy=RetryPolicy(1, 0.001))
        try:
            return [await engine.answer(call(text)) for text in texts], engine.endpoints[0].dialect
        finally:
            await engine.close()

    return asyncio.run(main())


def echo(shape):
    """A server that refuses one call and sends its document back in its error."""

    def fault(handler, body, attempt):
        text = body["messages"][-1]["content"]
        if "store" not in text:
            return False
        handler.send_json(shape(text, body), 400)
        return True

    return fault


SHAPES = {
    "beside the message": lambda text, body: {"error": {"message": "bad request", "request": body}},
    "in the message": lambda text, body: {"error": {"message": f"1 validation error, input: {text}"}},
    "fastapi": lambda text, body: {"detail": [{"loc": ["body", "messages"], "msg": "bad", "input": body}]},
    "in a list": lambda text, body: [{"error": {"message": "bad", "details": [text]}}],
    "as the code": lambda text, body: {"error": {"message": "bad", "code": 400, "echo": text}},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_error_that_sends_a_document_back_teaches_nothing_and_fails_its_call_alone(shape):
    with JudgeServer(echo(shape)) as server:
        (bad, good), dialect = ask(server, [DOCUMENT, "Rating: [["])
    assert dialect == Dialect()
    assert (bad.failure, good.failure) == ("http", None)
    assert good.structured


def test_a_lesson_is_kept_only_when_a_request_put_that_way_was_answered():
    refuse = {"error": {"message": "temperature is not what this document is about", "param": None}}

    def fault(handler, body, attempt):
        if "store" in body["messages"][-1]["content"]:
            handler.send_json(refuse, 400)
            return True
        return False

    with JudgeServer(fault) as server:
        (bad, good), dialect = ask(server, ["store", "Rating: [["])
    assert (bad.failure, good.failure, dialect) == ("http", None, Dialect())


def test_a_parameter_that_is_named_is_the_one_and_messages_are_searched_only_without():
    named = ErrorSaid("temperature and seed are both odd", param="seed")
    assert Dialect().adapted(named, BODY).dropped == {"seed"}
    assert Dialect().adapted(ErrorSaid("no 'temperature'"), BODY).dropped == {"temperature"}
    assert Dialect().adapted(ErrorSaid("temperature", param="messages"), BODY) is None
    renamed = Dialect().adapted(ErrorSaid("use max_completion_tokens", param="max_tokens"), BODY)
    assert renamed.renamed == {"max_tokens": "max_completion_tokens"}
    assert Dialect().adapted(ErrorSaid("bad", param="response_format.json_schema"), BODY).schema == "loose"
    learnt = Dialect("loose", {"max_tokens": "m"}, frozenset({"seed", "top_p"}))
    assert Dialect.read(learnt.written) == learnt


def test_what_was_learnt_stands_in_the_summary_and_is_not_learnt_again(tmp_path, capsys):
    refusals = []

    def picky(handler, body, attempt):
        if "temperature" not in body:
            return False
        refusals.append(is_check(body))
        error = {"message": "Unsupported value", "param": "temperature", "code": "unsupported_value"}
        handler.send_json({"error": error}, 400)
        return True

    prompts, run = tmp_path / "prompts.jsonl", tmp_path / "run"
    write_prompts(prompts, prompts=1, answers=1)
    with JudgeServer(picky) as server:
        command = ["label", str(prompts), "--output", str(run), "--judge.base-url", server.url]
        command += ["--judge.model", "judge", "--retrieval", "bm25"]
        assert main([*command, "--max-calls", "2"]) == 3
        learnt = len(refusals)
        assert main(command) == 0
    assert 0 < learnt == len(refusals)
    told = json.loads((run / "summary.json").read_text())["fields"]
    assert told == {f"judge at {server.url}": "temperature is left out"}
    assert f"fields for judge at {server.url}: temperature is left out" in capsys.readouterr().out
