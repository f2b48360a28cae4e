"""The local engine: the shared-prefix decoder against plain transformers, constrained answers, typed failures."""

from __future__ import annotations

import asyncio
import json

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from judge_pipeline.calls.call import Call, Message, Sampling
from judge_pipeline.common.errors import UserError
from judge_pipeline.engines.base import Routing, StopCalls
from judge_pipeline.engines.local import LocalEngine, TransformersJudge
from judge_pipeline.engines.shared_decoding import (
    PlainDecoder,
    PrefixMemory,
    SharedPrefixDecoder,
    common_prefix,
    shares_exactly,
)

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
SCHEMA = {
    "type": "object",
    "properties": {"analysis": {"type": "string", "maxLength": 30}, "rating": {"enum": [1, 2, 3]}},
    "required": ["analysis", "rating"],
    "additionalProperties": False,
}


def tiny(kind):
    torch.manual_seed(0)
    models = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)),
    }
    return models[kind]().eval()


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_shared_decoding_gives_the_models_own_numbers(kind):
    model = tiny(kind)
    head = list(range(10, 40))
    rows = [[*head, 50, 51, 52], [*head, 60], [*head, 70, 71, 72, 73, 74, 75]]
    forced = torch.randint(5, 90, (6, 3), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        reference = [list(row) for row in rows]
        expected = []
        for tokens in forced:
            expected.append(torch.stack([model(torch.tensor([row])).logits[0, -1] for row in reference]))
            for row, token in zip(reference, tokens, strict=True):
                row.append(token)
        assert shares_exactly(model)
        memory = PrefixMemory(1000)
        for round_number in range(2):  # the second time the head comes from memory
            decoder = SharedPrefixDecoder(model, memory)
            logits = decoder.start(rows)
            for want, tokens in zip(expected, forced, strict=True):
                torch.testing.assert_close(logits, want, atol=1e-4, rtol=1e-4)
                logits = decoder.step(tokens)
            assert decoder.reused == [30 * round_number, 30, 30]


def test_rows_that_are_done_leave_the_others_as_they_were():
    model = tiny("llama")
    rows = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 10, 11, 12]]
    with torch.inference_mode():
        assert shares_exactly(model)
        decoder = SharedPrefixDecoder(model, PrefixMemory(0))
        decoder.start(rows)
        decoder.step([20, 21, 22])
        decoder.keep([0, 2])
        logits = decoder.step([30, 32])
        model.set_attn_implementation("sdpa")
        want = [
            model(torch.tensor([row])).logits[0, -1]
            for row in ([5, 6, 7, 8, 20, 30], [5, 6, 10, 11, 12, 22, 32])
        ]
    torch.testing.assert_close(logits, torch.stack(want), atol=1e-4, rtol=1e-4)


def test_a_model_with_a_sliding_window_decodes_its_own_way():
    model = tiny("mistral")
    rows = [list(range(5, 30)), list(range(5, 25))]
    with torch.inference_mode():
        assert not shares_exactly(model)
        decoder = PlainDecoder(model)
        decoder.start(rows)
        logits = decoder.step([40, 41])
        want = [model(torch.tensor([[*row, t]])).logits[0, -1] for row, t in zip(rows, [40, 41], strict=True)]
    torch.testing.assert_close(logits, torch.stack(want), atol=1e-4, rtol=1e-4)


def test_prefix_memory_finds_the_longest_and_forgets_the_oldest():
    memory = PrefixMemory(10)
    kv = [(torch.arange(6.0).view(1, 1, 6, 1), torch.arange(6.0).view(1, 1, 6, 1))]
    memory.put([1, 2, 3, 4, 5, 6], kv)
    length, layers = memory.longest([1, 2, 3, 9])
    assert (length, layers[0][0].shape[2]) == (3, 3)
    memory.put([7, 8, 9, 7, 8, 9], kv)
    assert memory.longest([1, 2])[0] == 0
    assert common_prefix([[1, 2, 3], [1, 2], [1, 2, 4]]) == 2


@pytest.fixture(scope="module")
def judge():
    return TransformersJudge("smollm2")


def call(text, structured=True, **sampling):
    return Call(
        template="t.rate",
        messages=(Message(role="user", content="You judge answers. " * 20 + text),),
        sampling=Sampling(**{"max_tokens": 60, **sampling}),
        json_schema=SCHEMA if structured else None,
    )


def ask(judge, calls, **settings):
    async def main():
        engine = LocalEngine(judge, **settings)
        try:
            return await asyncio.gather(*(engine.answer(one) for one in calls))
        finally:
            await engine.close()

    return asyncio.run(main())


def test_every_answer_of_a_small_judge_fits_the_schema(judge):
    assert isinstance(judge.decoder, SharedPrefixDecoder)
    calls = [
        call(f"Rate this: 'The sky is {colour}.'")
        for colour in ("blue", "green", 'full of "stars"', "天空是蓝色的")
    ]
    replies = ask(judge, calls)
    for reply in replies:
        assert reply.failure is None, reply
        assert reply.structured
        found = json.loads(reply.text)
        assert found["rating"] in (1, 2, 3)
        assert len(found["analysis"]) <= 30
    assert replies[1].usage.cached_input_tokens > 50
    assert [reply.text for reply in ask(judge, calls)] == [reply.text for reply in replies]


def test_sampled_answers_repeat_with_their_call_and_differ_between_votes(judge):
    votes = [call("Rate this: 'Water is wet.'", temperature=1.0, sample=n) for n in range(3)]
    first, second = ask(judge, votes), ask(judge, votes, batch_size=3)
    assert [reply.text for reply in first] == [reply.text for reply in second]
    assert len({reply.text for reply in first}) > 1


def test_logprobs_come_with_the_answer(judge):
    reply = ask(judge, [call("Rate this: 'Fire is cold.'", logprobs=5)])[0]
    assert "".join(token.token for token in reply.logprobs) == reply.text
    for token in reply.logprobs:
        assert token.logprob <= 0
        assert max(token.top.values()) == pytest.approx(token.logprob)  # greedy: the likeliest was taken


def test_a_cut_answer_and_a_prompt_over_the_window_are_typed(judge):
    long = call("word " * 9000)
    cut, too_long, fine = ask(
        judge, [call("Tell a story.", structured=False, max_tokens=5), long, call("Rate 'x'.")]
    )
    assert (cut.failure, cut.finish_reason) == ("truncated", "length")
    assert too_long.failure == "context_too_long"
    assert "8192" in too_long.detail
    assert fine.failure is None


def test_calls_that_are_not_admitted_are_held_back(judge):
    def refuse():
        raise StopCalls("limit")

    async def main():
        engine = LocalEngine(judge)
        results = await asyncio.gather(
            engine.answer(call("a")), engine.answer(call("b"), Routing(admit=refuse)), return_exceptions=True
        )
        await engine.close()
        return results

    answered, held = asyncio.run(main())
    assert answered.failure is None
    assert isinstance(held, StopCalls)


def test_a_model_that_cannot_be_loaded_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded"):
        TransformersJudge(str(tmp_path))
