"""Questions that a careful judge would otherwise have to settle by itself, answered in the templates of both languages."""

import pytest
import regex

from judge_pipeline.prompts.templates import load_template

SETTLED = [
    # matter, template, what the English one says, what the Chinese one says
    ("granularity", "faithfulness.extract", "About one statement per sentence", "大致一句话"),
    ("inferences", "faithfulness.extract", "works out for itself", "自己推出来的内容不取"),
    ("calculations", "faithfulness.extract", "calculations", "计算"),
    ("stated totals", "faithfulness.extract", "gives without deriving it", "没有推导、直接给出"),
    ("repeats", "faithfulness.extract", "Say everything once", "只列一次"),
    ("how-to steps", "faithfulness.extract", "Steps of a how-to", "操作步骤"),
    ("what the document lacks", "faithfulness.extract", "says nothing about something", "没有提到某事"),
    ("broken sentences", "faithfulness.extract", "breaks off or is garbled", "中断或错乱"),
    ("inferences", "execution_faithfulness.extract", "only concludes or calculates", "得出的结论或计算不取"),
    ("broken sentences", "execution_faithfulness.extract", "breaks off or is garbled", "中断或错乱"),
    *(
        (matter, f"{name}.{kind}", english, chinese)
        for name in ("faithfulness", "execution_faithfulness")
        for kind in ("verify", "verify_many")
        for matter, english, chinese in (
            ("wrong or imprecise", "Strike out", "划掉"),
            ("partial", "what is left is still the heart", "剩下的仍是"),
            ("none", "there to tell is struck out", "所要告诉人的内容被划掉"),
            ("order", "Passages cannot show", "段落看不出什么在最前"),
            ("marks", "<P1-1a2b3c>", "<P1-1a2b3c>"),
            ("edges", '"…"', "“…”"),
        )
    ),
    ("rounding", "faithfulness.verify", '"about 600" for 598', "约600"),
    *(
        (matter, template, english, chinese)
        for template in ("logicality.rate", "joint.rate")
        for matter, english, chinese in (
            ("one sentence", "a single sentence", "只有一句话"),
            ("declining", "an answer that declines", "拒绝回答"),
            ("garbling", "largely garbled", "错乱"),
            ("repetition", "mostly repeat", "大部分是重复"),
            ("off topic", "beside the question", "答非所问"),
            ("knowledge of the world", "only knowledge of the world", "只有靠世界知识"),
        )
    ),
    *(
        (matter, template, english, chinese)
        for template in ("helpfulness.rate", "joint.rate")
        for matter, english, chinese in (
            ("plainly wrong", "on the face of it", "一看就不可能对"),
            ("declining", "only declines, 2-3", "只拒绝，1分"),
            ("today", "the time the document speaks of", "文档所说的时间"),
        )
    ),
    ("neighbours", "completeness.extract", "merely next to it", "只是与问题相邻"),
    ("summaries", "completeness.extract", "one key point for each item of business", "每项议题"),
    *(
        (matter, f"{name}.cover", english, chinese)
        for name in ("completeness", "plan_completeness")
        for matter, english, chinese in (
            ("empty list", "5: ", "5："),
            ("half covered", "it counts half", "按一半计"),
            ("neighbours", "costs nothing", "不扣分"),
            ("groups", "may be one part of a longer one", "可能是更长列表的一部分"),
            ("places", "in brackets stands how far", "括号里是它在"),
        )
    ),
    ("summaries", "completeness.cover", "every item of business", "每项议题"),
]


@pytest.mark.parametrize(("matter", "name", "english", "chinese"), SETTLED)
def test_the_matter_is_settled_in_both_languages(matter, name, english, chinese):
    for language, says in (("en", english), ("zh", chinese)):
        assert says in load_template(name, language).parts["task"], (language, matter)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(
    "name",
    ["helpfulness.rate", "logicality.rate", "joint.rate", "completeness.cover", "plan_completeness.cover"],
)
def test_examples_are_rated_high_and_low_and_in_between(name, language):
    examples = load_template(name, language).examples
    ratings = [int(text) for one in examples for field, text in one.items() if field.endswith("rating")]
    assert min(ratings) <= 5
    assert max(ratings) == 10
    assert {7, 8} & set(ratings)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", ["faithfulness", "execution_faithfulness"])
def test_examples_of_statements_are_sentences_and_leave_out_what_follows(name, language):
    for example in load_template(f"{name}.extract", language).examples:
        sentences = [one for one in regex.split(r"(?<=[.!?。！？])\s*|\n", example["answer"]) if one.strip()]
        statements = example["statements"].splitlines()
        assert len(statements) <= len(sentences)
        concluded = regex.search(r"so dropping|therefore|So a|所以|因此|总之", example["answer"])
        if concluded and statements:
            assert not regex.search(
                r"38,?400|therefore|never needed|removed|因此|所以|消除|总之", example["statements"]
            )


@pytest.mark.parametrize("language", ["en", "zh"])
def test_examples_of_verdicts_show_a_wrong_detail_and_a_wrong_figure_that_was_the_point(language):
    examples = load_template("faithfulness.verify", language).examples
    by_verdict = {one["verdict"]: one for one in examples}
    assert set(by_verdict) == {"full", "partial", "none"}
    assert all(regex.search(r"\bP\d", one["analysis"]) for one in examples)
    assert regex.search(r"^[(（]\d", by_verdict["partial"]["passages"])  # a number of the document's own
    assert regex.search("closed with|会议最后", by_verdict["partial"]["statement"])  # an order nobody can see
    assert not regex.search(r"Passage \d|段落\d", str(examples))


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", ["completeness.cover", "plan_completeness.cover"])
def test_examples_of_key_points_have_their_places(name, language):
    for example in load_template(name, language).examples:
        assert all(regex.match(r"[(（]\d+%[)）]", line) for line in example["key_points"].splitlines())
