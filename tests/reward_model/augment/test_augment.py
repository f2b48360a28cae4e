"""`reward-model augment`: what is written, how it is written, and what wording gives away."""

from __future__ import annotations

import json

import pytest

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import read_prompts, write_records
from judge_pipeline.common.records import DIMENSIONS, Prompt
from judge_pipeline.statistics.baselines import words
from reward_model.augment.generate import Plan, augment
from reward_model.augment.style import style_of
from reward_model.cli import main
from reward_model.data.contrasts import pairs_of, read_pairs
from tests.reward_model.augment.augment_helpers import DEMO, chinese, demo, english, other_english


def made(records):
    """Id → augmented field of all changed answers."""
    return {
        item.id: item.augmented
        for prompt in records
        for item in prompt.responses
        if hasattr(item, "augmented")
    }


def dump(records):
    return [record.model_dump(mode="json") for record in records]


def test_every_change_is_recorded():
    prompts = [*demo(), english(), chinese()]
    records = list(augment(prompts, Plan()))
    assert [record.id for record in records] == [prompt.id for prompt in prompts]
    for prompt, record in zip(prompts, records, strict=True):
        originals = {item.id: item.text for item in prompt.responses}
        there = {item.id for item in record.responses}
        assert len(there) == len(record.responses)
        assert (record.context, record.query, record.document_id) == (
            prompt.context,
            prompt.query,
            prompt.document_id,
        )
        for item in record.responses:
            if item.id in originals:
                assert item.text == originals[item.id]
                assert not hasattr(item, "augmented")
                continue
            assert item.source == "augmented"
            field = item.augmented
            assert field.keys() == {"from", "dimension", "strength", "damage", "keeps"}
            assert field["from"] in there
            assert (field["dimension"] is None) == (field["strength"] == 0)
            assert field["dimension"] not in field["keeps"]
        assert len({item.text for item in record.responses}) == len(record.responses)
        assert {field["dimension"] for field in made([record]).values()} >= {"faithfulness", "completeness"}


def test_lengths_stay_within_the_tolerance():
    for record in augment([*demo(), chinese()], Plan(length_tolerance=0.1, answers=6)):
        texts = {item.id: item.text for item in record.responses}
        for name, text in texts.items():
            root = name.split("~")[0]
            assert abs(len(words(text)) / len(words(texts[root])) - 1) <= 0.1


def test_the_same_seed_makes_the_same_file_and_an_answer_does_not_depend_on_its_neighbours():
    plan = Plan(dimensions=("logicality", "completeness"), documents=True)
    once = dump(augment(demo(), plan))
    assert once == dump(augment(demo(), plan))
    alone = dump(augment(demo()[1:2], plan))
    assert [row for row in once if row["id"] == demo()[1].id] == alone[:1]


@pytest.mark.parametrize(
    "changed",
    [
        {"dimensions": ("logicality",)},
        {"strengths": (3,)},
        {"answers": 4},
        {"per_answer": 3},
        {"keep_length": False},
        {"length_tolerance": 0.01},
        {"neutral": False},
        {"documents": True},
        {"seed": 1},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_no_setting_is_ignored(changed):
    assert dump(augment(demo(), Plan())) != dump(augment(demo(), Plan(**changed)))


def test_settings_do_what_they_say():
    only = made(augment(demo(), Plan(dimensions=("logicality",), strengths=(3,), neutral=False, answers=6)))
    assert {field["dimension"] for field in only.values()} <= {"logicality", None, "faithfulness"}
    assert {field["strength"] for field in only.values() if field["dimension"] == "logicality"} == {3}
    assert not {"pair turned", "neighbours"} & {field["damage"] for field in only.values()}
    dropped = made(augment(demo(), Plan(dimensions=("completeness",), keep_length=False)))
    assert {field["damage"] for field in dropped.values() if field["dimension"]} == {"dropped"}


def test_answers_to_another_question_of_the_document_are_used_where_there_are_any():
    two = [english(), english(1, "What happens in the town in spring?")]
    other = "The choir will travel to Arden. The market brings cheese. A heron was seen. The school has 240 pupils. It rains."
    two[1] = Prompt.model_validate(
        {**two[1].model_dump(exclude_unset=True), "responses": [{"id": "c", "text": other}]}
    )
    fields = made(augment(two, Plan(dimensions=("helpfulness",), strengths=(1,), neutral=False)))
    assert {field["damage"] for field in fields.values() if field["dimension"]} == {"other question"}


def test_beside_a_changed_document_right_and_wrong_trade_places():
    records = list(augment([english(), chinese(), other_english()], Plan(documents=True)))
    by_id = {record.id: record for record in records}
    for name in ("mill-0", "zh"):
        own, beside = by_id[name], by_id[f"{name}~d"]
        assert beside.augmented["contrast_with"] == name
        assert beside.document_id == own.document_id  # stays on its side of any split
        assert beside.context != own.context
        assert sorted(words(beside.context)) == sorted(words(own.context)) or len(beside.context) == len(
            own.context
        )
        texts = {item.id: item.text for item in own.responses}
        for item in beside.responses:
            assert texts[item.id] == item.text
        pairs = [pair for pair in pairs_of(records) if beside.id in (pair.better[0], pair.worse[0])]
        across = [pair for pair in pairs if pair.better[0] != pair.worse[0]]
        # Each answer has its document: the same ids are better here and worse there.
        assert {pair.better[1] for pair in across if pair.better[0] == beside.id} == {
            item.id for item in beside.responses if item.source == "augmented"
        }
        assert {pair.better[1] for pair in across if pair.better[0] == name} == {
            item.id for item in beside.responses if item.source != "augmented"
        }
        assert {pair.dimension for pair in across} == {"faithfulness"}


def test_beside_another_document_every_answer_is_worse():
    records = list(augment([english(), other_english()], Plan(documents=True)))
    other = next(record for record in records if record.id == "mill-0~o")
    assert other.context == other_english().context
    assert (other.document_id, other.query) == ("mill", english().query)
    pairs = [pair for pair in pairs_of(records) if "mill-0~o" in (pair.better[0], pair.worse[0])]
    assert pairs
    assert all(
        pair.worse == ("mill-0~o", pair.better[1]) and pair.damage == "another document" for pair in pairs
    )
    alone = list(augment([english()], Plan(documents=True)))
    assert [record.id for record in alone] == ["mill-0", "mill-0~d"]


def test_what_is_changed_already_is_refused():
    records = list(augment([english()], Plan(documents=True)))
    for again in records:
        with pytest.raises(UserError, match=f"prompt '{again.id}'.*changed already"):
            list(augment([again], Plan()))


def test_wording_alone_tells_no_damage():
    """Without the document a bag of words cannot tell damaged answers from those they are compared with."""
    records = list(augment(demo(), Plan(answers=6, per_answer=4)))
    pairs = list(pairs_of(records))
    joined = style_of(records, [pair for pair in pairs if pair.dimension])
    many = [item for item in joined if item.pairs >= 30]
    assert len(many) >= 4
    for item in many:
        assert item.auc < 0.65, item
    weights = [item.pairs for item in many]
    assert sum(item.auc * item.pairs for item in many) / sum(weights) < 0.6


def test_a_trace_in_the_wording_is_found():
    records = list(augment(demo(), Plan(answers=6, dimensions=("logicality",), neutral=False)))
    marked = [
        record.model_copy(
            update={
                "responses": [
                    item.model_copy(update={"text": item.text + " Alas."})
                    if item.source == "augmented"
                    else item
                    for item in record.responses
                ]
            }
        )
        for record in records
    ]
    order = next(item for item in style_of(marked, list(pairs_of(marked))) if item.damage == "order")
    assert order.auc > 0.9
    assert order.ordered > 0.9


def test_the_command_writes_records_a_description_and_what_wording_tells(tmp_path, capsys):
    output = tmp_path / "made.jsonl"
    words_of = ["augment", str(DEMO), "--output", str(output), "--document-contrast", "--seed", "3"]
    assert main(words_of) == 0
    text = capsys.readouterr().out
    assert "contrasts of documents" in text
    prompts, pairs = read_pairs(output)
    assert {pair.dimension for pair in pairs} >= set(DIMENSIONS)
    summary = json.loads((tmp_path / "made.jsonl.summary.json").read_text())
    assert summary["answers"] == sum(
        hasattr(item, "augmented")
        for prompt in prompts
        if not hasattr(prompt, "augmented")
        for item in prompt.responses
    )
    assert summary["document_contrasts"] == sum(hasattr(prompt, "augmented") for prompt in prompts)
    assert {item["damage"] for item in summary["told_apart_by_wording"]}
    assert (tmp_path / "made.jsonl.run.yaml").is_file()
    before = output.read_bytes()
    assert main(words_of) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert output.read_bytes() == before
    assert main([*words_of[:-1], "4"]) == 2
    assert main([*words_of[:-1], "4", "--existing", "replace"]) == 0
    assert output.read_bytes() != before


def test_bad_settings_and_files_are_told(tmp_path, capsys):
    output = str(tmp_path / "made.jsonl")
    assert main(["augment", str(DEMO), "--output", output, "--dimensions", "beauty"]) == 2
    assert "'beauty' cannot be damaged" in capsys.readouterr().err
    assert main(["augment", str(DEMO), "--output", output, "--strengths", "4"]) == 2
    assert "strengths are 1, 2 and 3" in capsys.readouterr().err
    assert main(["augment", str(DEMO), "--output", str(DEMO)]) == 2
    assert "input" in capsys.readouterr().err
    bare = tmp_path / "bare.jsonl"
    write_records(
        bare, [{"id": "p", "context": "Text.", "query": "Why?", "responses": [{"id": "r", "text": "Yes."}]}]
    )
    assert main(["augment", str(bare), "--output", output]) == 2
    assert "could be changed" in capsys.readouterr().err
    assert not (tmp_path / "made.jsonl").exists()
    assert len(list(read_prompts(DEMO))) == 3
