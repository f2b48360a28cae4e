"""Scheduling with a fake engine at the engine seam: sharing, windows, order of rows, budgets, retries of plans."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from contextlib import closing

import pytest

from judge_pipeline.calls.call import Call, CallUsage, Message, Reply
from judge_pipeline.calls.store import CallStore, Finished, StoreTotals
from judge_pipeline.calls.writer import StoreWriter
from judge_pipeline.common.record_files import read_labels
from judge_pipeline.common.records import Prompt, Response
from judge_pipeline.common.weighting import Weighting, resolve_weighting
from judge_pipeline.dimensions.base import Outcome, Request
from judge_pipeline.engines.base import DEFAULT_ROUTING
from judge_pipeline.engines.run_calls import Budget, CallRunner, Prices
from judge_pipeline.labelling.fingerprint import judged_hashes
from judge_pipeline.labelling.label_file import LabelFile
from judge_pipeline.labelling.planning import PromptPlanner, keys_behind_failures
from judge_pipeline.labelling.scheduler import Scheduler
from judge_pipeline.labelling.summary import Tally, summarize, summary_lines
from judge_pipeline.labelling.workers import Workers


def call(text, template="t"):
    return Call(template=template, messages=(Message(role="user", content=text),))


class FakeEngine:
    model = identity = "fake"
    supports_schema = False
    context_window = None

    def __init__(self, delay=lambda text: 0.0, broken=()):
        self.asked = Counter()
        self.routings = {}
        self.delay, self.broken = delay, broken

    def where(self, routing):
        return "here"

    async def answer(self, call, routing=DEFAULT_ROUTING):
        routing.admit()
        text = call.messages[0].content
        self.asked[text] += 1
        self.routings[text] = routing
        await asyncio.sleep(self.delay(text))
        if text in self.broken:
            raise RuntimeError("a defect")
        return Reply(text="7", usage=CallUsage(input_tokens=10, output_tokens=1))

    async def close(self):
        pass


class Shared:
    """A dimension that asks one thing for all answers of a document, then one for each."""

    name = "shared"

    def plan(self, prompt, evidence):
        everyone = tuple(range(len(prompt.responses)))
        yield [Request(call(f"about {prompt.context}"), everyone)]
        replies = yield [Request(call(f"{prompt.id} {n}"), (n,)) for n in everyone]
        return [
            Outcome(float(reply.text)) if not reply.failure else Outcome(None, reply.failure)
            for reply in replies
        ]


class Alone(Shared):
    name = "alone"

    def plan(self, prompt, evidence):
        replies = yield [Request(call(f"{prompt.id} alone"), (0,))]
        return [Outcome(9.0, evidence={"text": replies[0].text})] * len(prompt.responses)


def prompts(count, answers=2, documents=1):
    return [
        Prompt(
            id=f"p{n}",
            context=f"document {n % documents}",
            query="q",
            responses=[Response(id=str(a), text="answer") for a in range(answers)],
        )
        for n in range(count)
    ]


class NoEvidence:
    """Documents that need no reading."""

    def build(self, text):
        return self

    def pieces(self):
        pass

    index = pieces


def run(tmp_path, rows, engine, *, window=8, budget=None, dimensions=None, documents=None, **settings):
    dimensions = dimensions or (Shared(), Alone())
    store = CallStore(tmp_path / "calls.sqlite")
    names = [dimension.name for dimension in dimensions]
    weighting = Weighting(dict.fromkeys(names, 1.0))
    tally = Tally(names)
    answers = {row.id: judged_hashes(row) for row in rows}
    labels = LabelFile(tmp_path / "labels.jsonl", answers, "judge", tally, weighting)
    open_prompts = []

    async def main():
        writer = StoreWriter(store)
        runner = CallRunner(engine, writer, budget)
        with closing(Workers()) as workers:
            planner = PromptPlanner(dimensions, runner, weighting, workers)
            scheduler = Scheduler(planner, documents or NoEvidence(), labels, window=window, **settings)

            def stream():
                for row in rows:
                    open_prompts.append(len(scheduler._open))
                    yield row

            await scheduler.run(stream())
        await writer.close()
        return runner

    try:
        return asyncio.run(main()), tally, max(open_prompts)
    finally:
        labels.close()
        store.close()


def test_what_is_shared_is_asked_once_and_its_cost_split(tmp_path):
    engine = FakeEngine()
    runner, tally, _ = run(tmp_path, prompts(6, answers=2, documents=2), engine)
    assert max(engine.asked.values()) == 1
    assert engine.asked["about document 0"] == 1
    labels = list(read_labels(tmp_path))
    assert sum(label.usage.calls for label in labels) == pytest.approx(runner.budget.spent.made, abs=0.01)
    assert runner.budget.spent.made == 2 + 12 + 6
    assert runner.budget.spent.shared == 4
    first = labels[0].usage
    assert first.calls == 0.5 + 1 + 1  # half the shared call, its own, and the one asked for it alone
    assert first.input_tokens == 25
    assert tally.complete


def test_calls_queue_by_template_document_prompt_and_answer(tmp_path):
    engine = FakeEngine()
    run(tmp_path, prompts(4, answers=2, documents=2), engine, dimensions=(Shared(),))
    queue = sorted(engine.routings, key=lambda text: engine.routings[text].priority)
    own = [text for text in queue if not text.startswith("about")]
    assert own == ["p0 0", "p0 1", "p2 0", "p2 1", "p1 0", "p1 1", "p3 0", "p3 1"]
    assert {engine.routings[f"p1 {n}"].affinity for n in range(2)} == {"p1"}


def test_the_answer_that_is_stored_is_the_one_that_is_used(tmp_path):
    path = tmp_path / "calls.sqlite"

    class Overtaken(FakeEngine):
        """While it works, another process on the same file gets its own answer to the same call."""

        async def answer(self, call, routing=DEFAULT_ROUTING):
            other = CallStore(path)
            other.put([Finished(call, self.identity, Reply(text="theirs"))])
            other.close()
            return await super().answer(call, routing)

    async def main():
        store = CallStore(path)
        writer = StoreWriter(store)
        runner = CallRunner(Overtaken(), writer)
        try:
            return await runner.reply(call("q")), store.find(call("q").key("fake"))
        finally:
            await writer.close()
            store.close()

    used, stored = asyncio.run(main())
    assert used.reply.text == stored.reply.text == "theirs"


def test_what_went_otherwise_than_asked_is_counted(tmp_path):
    class Noted(Shared):
        name = "noted"

        def plan(self, prompt, evidence):
            yield [Request(call(prompt.id), (0, 1))]
            return [
                Outcome(5.0, evidence={"fallback": "no log-probabilities", "rule": None, "tolerated": {}}),
                Outcome(10.0, evidence={"rule": "no_statements:full", "copied_from_example": 2}),
            ]

    runner, tally, _ = run(tmp_path, prompts(3), FakeEngine(), dimensions=(Noted(),))
    summary = summarize(tally, runner.budget, StoreTotals(3, 0), 1.0)
    assert summary["notes"] == {
        "noted": {"fallback": 3, "tolerated": 3, "no_statements:full": 3, "copied_from_example": 3}
    }
    told = "\n".join(summary_lines(summary))
    assert "3 fallback" in told
    assert "3 no_statements:full" in told


def test_rows_are_in_input_order_however_late_the_first_is_and_the_window_is_kept(tmp_path):
    engine = FakeEngine(delay=lambda text: 0.15 if text.startswith("p0 ") else 0.0)
    rows = prompts(40, documents=40)
    _, _, most_open = run(tmp_path, rows, engine, window=5)
    assert [label.prompt_id for label in read_labels(tmp_path)] == [
        row.id for row in rows for _ in row.responses
    ]
    assert most_open <= 5


class SlowFirst(FakeEngine):
    """The first prompt's first own call is answered when all others were, or nothing else is asked any more."""

    def __init__(self, others, quiet_s):
        super().__init__()
        self.others, self.quiet_s, self.meanwhile = others, quiet_s, 0

    async def answer(self, call, routing=DEFAULT_ROUTING):
        reply = await super().answer(call, routing)
        if call.messages[0].content == "p0 0":
            while self.meanwhile < len(self.asked) < self.others:
                self.meanwhile = len(self.asked)
                await asyncio.sleep(self.quiet_s)
            self.meanwhile = len(self.asked)
        return reply


def test_one_slow_call_does_not_stall_the_window(tmp_path):
    """A call of eight takes long: the others' prompts leave the window, and new ones go on meanwhile."""
    rows, engine = prompts(40, documents=40), SlowFirst(40 * 4, quiet_s=2)
    run(tmp_path, rows, engine, window=8)
    assert engine.meanwhile == 40 * 4
    assert [label.prompt_id for label in read_labels(tmp_path)] == [
        row.id for row in rows for _ in row.responses
    ]


def test_rows_that_wait_for_an_earlier_prompt_are_bounded_by_bytes(tmp_path):
    """What could not wait in memory is not begun before there is room for it."""
    engine = SlowFirst(40 * 4, quiet_s=0.5)
    run(tmp_path, prompts(40, documents=40), engine, window=4, waiting_bytes=3000)
    assert 4 < engine.meanwhile < 30 * 4
    assert len(list(read_labels(tmp_path))) == 80


def test_documents_that_are_embedded_hold_up_nobody_elses_calls(tmp_path):
    """The embedding model is one document's at a time; everything that need not wait for it goes on."""
    embedding, embedded = threading.Lock(), threading.Event()

    class Searching(Shared):
        name = "searching"
        needs = "search"

    class Slow(NoEvidence):
        def build(self, text):
            return Slow()

        def index(self):
            with embedding:
                assert embedded.wait(20), "calls waited for the embedding model"

    asked = 8 * 4  # of both rounds; the searching dimension's calls are Shared's, made once
    seen = set()

    def delay(text):
        seen.add(text)
        if len(seen) == asked:
            embedded.set()
        return 0.0

    engine = FakeEngine(delay=delay)
    dimensions = (Searching(), Shared(), Alone())
    run(tmp_path, prompts(8, documents=8), engine, documents=Slow(), dimensions=dimensions)
    assert embedded.is_set()
    assert len(list(read_labels(tmp_path))) == 16


def test_a_defect_ends_the_run_and_keeps_what_was_answered(tmp_path):
    engine = FakeEngine(broken={"p3 1"})
    rows = prompts(10, documents=10)
    with pytest.raises(RuntimeError, match="a defect"):
        run(tmp_path, rows, engine, window=2)
    asked = sum(engine.asked.values())
    again = FakeEngine()
    run(tmp_path, rows, again, window=2)
    assert sum(again.asked.values()) == 10 * 4 - (asked - 1)
    assert len(list(read_labels(tmp_path))) == 20


def test_a_call_that_fails_when_nobody_waits_any_more_is_not_reported_by_the_loop(tmp_path):
    reported = []

    async def go():
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: reported.append(context["message"])
        )
        store = CallStore(tmp_path / "c.sqlite")
        writer = StoreWriter(store)
        runner = CallRunner(FakeEngine(delay=lambda _: 0.05, broken={"x"}), writer)
        asking = asyncio.create_task(runner.reply(call("x")))
        await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.sleep(0.1)
        gc.collect()
        await writer.close()
        store.close()

    asyncio.run(go())
    assert reported == []


def test_after_the_limit_prompts_not_begun_get_rows_without_being_planned(tmp_path):
    engine = FakeEngine()
    runner, tally, _ = run(tmp_path, prompts(30, documents=30), engine, window=3, budget=Budget(max_calls=9))
    assert sum(engine.asked.values()) == 9
    labels = list(read_labels(tmp_path))
    assert len(labels) == 60
    assert not tally.complete
    assert {f.reason for label in labels[-2:] for f in label.failures} == {"stopped"}
    assert "--max-calls" in runner.budget.stopped


def test_cost_counts_cached_input_at_its_own_price():
    usage = CallUsage(input_tokens=1_000_000, output_tokens=500_000, cached_input_tokens=400_000)
    assert Prices().cost(usage) is None
    assert Prices(1.0, 4.0).cost(usage) == pytest.approx(3.0)
    assert Prices(1.0, 4.0, 0.1).cost(usage) == pytest.approx(0.6 + 0.04 + 2.0)


def test_retry_looks_at_the_last_two_rounds_of_the_failed_answer_only():
    outcomes = [Outcome(5.0), Outcome(None, "unparsable"), Outcome(None, "timeout")]
    rounds = [
        [("a", (0,)), ("b", (1,)), ("c", (2,))],
        [("d", (0, 1)), ("e", (2,))],
        [("f", (1,))],
        [("g", (2,))],
    ]
    assert keys_behind_failures(outcomes, rounds) == {"d", "f"}


def test_weights_default_to_one_and_bad_ones_are_refused():
    from judge_pipeline.common.errors import UserError

    assert resolve_weighting({"b": 2}, ["a", "b"], "null").weights == {"a": 1.0, "b": 2.0}
    for bad in ({"x": 1}, {"a": -1}, {"a": 0, "b": 0}, {"a": float("nan")}):
        with pytest.raises(UserError):
            resolve_weighting(bad, ["a", "b"], "null")


def test_a_file_with_a_hole_is_written_anew_in_order(tmp_path):
    rows = prompts(6, documents=6)
    run(tmp_path, rows, FakeEngine())
    file = tmp_path / "labels.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:4] + lines[6:]))  # p2's rows are gone
    engine = FakeEngine()
    run(tmp_path, rows, engine)
    assert not engine.asked
    assert [label.prompt_id for label in read_labels(tmp_path)] == [
        row.id for row in rows for _ in row.responses
    ]
    assert [path.name for path in tmp_path.iterdir() if ".new" in path.name] == []


def test_a_torn_last_row_is_cut_off_and_its_prompt_labelled_again(tmp_path):
    rows = prompts(4, documents=4)
    run(tmp_path, rows, FakeEngine())
    file = tmp_path / "labels.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    run(tmp_path, rows, FakeEngine())
    assert file.read_bytes() == whole
