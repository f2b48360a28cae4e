"""Finding out whether an endpoint holds answers to a schema: what fools nobody, what is found out nonetheless."""

from __future__ import annotations

import asyncio
import json

import pytest
from judge_servers import JudgeServer, completion, is_check, sane_text

from judge_pipeline.common.errors import UserError
from judge_pipeline.engines.endpoint import EndpointEngine
from judge_pipeline.engines.endpoint_checks import PROBE, probe_schema
from judge_pipeline.engines.retries import RetryPolicy
from judge_pipeline.evaluation.judges import HolisticShape
from judge_pipeline.replies.choices import ChoiceShape
from judge_pipeline.replies.lists import ListShape
from judge_pipeline.replies.ratings import JointShape, RatingShape
from judge_pipeline.replies.verdicts import VerdictShape, VerdictsShape


def probe(*servers):
    async def main():
        urls = [server.url for server in servers]
        engine = EndpointEngine(urls, "judge", "key", policy=RetryPolicy(2, 0.001), timeout_s=5)
        try:
            return await probe_schema(engine)
        finally:
            await engine.close()

    return asyncio.run(main())


def saying(text, finish="stop"):
    def answer(handler, body, attempt):
        handler.send_json(completion(text(body) if callable(text) else text, finish))
        return True

    return answer


def obedient(body):
    """What a capable model says that sees the question and no schema."""
    asked = body["messages"][-1]["content"]
    if "JSON" in asked:
        return json.dumps({"ok": True})
    return "Blue."


@pytest.mark.parametrize(
    "text", [obedient, '{"answer": "blue"}', '{"ok": true}', "", '<think>{"word": "quagga-7"}</think>Blue.']
)
def test_a_server_that_ignores_schemas_is_found_out(text):
    with JudgeServer(saying(text)) as server:
        assert probe(server) is False


def test_a_server_that_keeps_to_schemas_passes_also_when_it_thinks_first():
    with JudgeServer() as server:
        assert probe(server) is True
    with JudgeServer(saying(lambda body: "<think>Blue? {}</think>\n" + sane_text(body))) as server:
        assert probe(server) is True


def test_there_is_room_to_think():
    def thinks(handler, body, attempt):
        short = body["max_tokens"] < 3000
        text = "<think>hm, " if short else "<think>hm</think>" + sane_text(body)
        handler.send_json(completion(text, "length" if short else "stop"))
        return True

    with JudgeServer(thinks) as server:
        assert probe(server) is True


def test_a_small_window_is_no_reason_to_do_without():
    def narrow(handler, body, attempt):
        if body["max_tokens"] <= 1000:
            return False
        words = "This model's maximum context length is 1500 tokens"
        handler.send_json({"error": {"message": words}}, 400)
        return True

    with JudgeServer(narrow) as server:
        assert probe(server) is True


def test_a_passing_500_proves_nothing():
    def passing(handler, body, attempt):
        if attempt > 2:
            return False
        handler.send_json({"error": {"message": "no"}}, 500)
        return True

    with JudgeServer(passing) as server:
        assert probe(server) is True


def test_what_cannot_be_found_out_is_said_instead_of_guessed():
    def breaks(handler, body, attempt):
        if "response_format" not in body:
            return False
        handler.send_json({"error": {"message": "grammar backend crashed"}}, 500)
        return True

    with JudgeServer(breaks) as server, pytest.raises(UserError, match="grammar backend crashed") as caught:
        probe(server)
    assert "--judge.structured off" in caught.value.hint


def test_every_endpoint_must_keep_to_schemas():
    with JudgeServer() as able, JudgeServer(saying(obedient)) as unable:
        assert probe(able, unable) is False
        assert [sum(map(is_check, server.bodies)) for server in (able,)] == [1]


def keywords(schema):
    """Every keyword of a schema."""
    if isinstance(schema, list):
        return set().union(*map(keywords, schema))
    if not isinstance(schema, dict):
        return set()
    inner = schema.get("properties", {})
    rest = {name: part for name, part in schema.items() if name != "properties"}
    return set(schema) | keywords(list(rest.values())) | keywords(list(inner.values()))


def test_the_probe_uses_the_keywords_of_the_real_schemas():
    shapes = [RatingShape(key_points=4), JointShape(), VerdictShape(), VerdictsShape(count=3), ChoiceShape()]
    shapes += [ListShape(), HolisticShape()]
    real = set().union(*(keywords(shape.schema()) for shape in shapes))
    assert keywords(PROBE.json_schema) >= real
