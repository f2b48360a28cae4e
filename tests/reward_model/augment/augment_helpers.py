"""Documents of our own making, in English and Chinese, with answers."""

from __future__ import annotations

from pathlib import Path

from judge_pipeline.common.record_files import read_prompts
from judge_pipeline.common.records import Prompt

DEMO = Path(__file__).with_name("demo_excerpt.jsonl")

ENGLISH = (
    "The old mill stopped in 1987, and Marta Vale proposed to make it a library. The rebuilding costs 42,000 pounds. "
    "The county pays 18,000 pounds of it. The miller Olin Reyes gave two mill stones. In March the council asked Pia "
    "Hallam for a plan. The architect Pia Hallam wants nine months for the work. The roof is not sound and must be "
    "renewed before winter. The library can open in October because the floor needs to dry. In 1962 a flood carried "
    "away the wooden bridge near the mill. The bakery in the lane sells rye bread every Saturday. A heron was seen at "
    "the weir by the children of the school. The market on Friday brings farmers from Tolland with cheese and apples. "
    "Some people of Tolland still speak of the year when the river froze from bank to bank. The school has 240 pupils. "
    "The choir sings in the chapel and will travel to Arden in May. The postman carries letters up to the farm of Nils "
    "Brandt. The winter road to Arden was closed for 31 days."
)
CHINESE = (
    "青石镇的老磨坊在1987年停工，镇长王建国在去年三月提出把它改成图书馆。改造费用是42万元。县里出18万元，其余由居民捐款。"
    "李秀梅是磨坊主人的孙女，李秀梅说磨坊有三层。工程由陈志远负责，他估计要九个月。王建国认为图书馆可以在十月开放。"
    "李秀梅同意捐出两台旧磨盘。陈志远说屋顶漏水，必须先修。镇上还有一座小学，学校有240名学生。图书馆每周开放五天，星期一闭馆。"
    "星期四有集市，卖蔬菜和布。河对岸的白杨村也有人来借书。白杨村的居民一共捐了6万元。青石镇的居民捐了12万元。"
    "冬天河水结冰，孩子们在冰上玩得很高兴。小学的操场去年铺了新的草皮。邮差每天骑车送信到山上的农场去。"
)


def english(number: int = 0, query: str = "What becomes of the mill and what does it cost?") -> Prompt:
    """The mill, asked about once."""
    return Prompt.model_validate(
        {
            "id": f"mill-{number}",
            "document_id": "mill",
            "context": ENGLISH,
            "query": query,
            "responses": [
                {
                    "id": "a",
                    "text": "The mill becomes a library, as Marta Vale proposed. The rebuilding costs 42,000 pounds. The "
                    "county pays 18,000 of it. Pia Hallam says that the work takes nine months. It can open in October "
                    "because the floor needs to dry.",
                },
                {
                    "id": "b",
                    "text": "Marta Vale wants a library. The county pays 18,000 pounds.\n\n- The roof is not sound;\n"
                    "- Olin Reyes gave two stones.\n- The library can open in October.",
                },
            ],
        }
    )


def chinese() -> Prompt:
    """The mill in Chinese."""
    return Prompt.model_validate(
        {
            "id": "zh",
            "document_id": "zh",
            "context": CHINESE,
            "query": "磨坊将改成什么，费用多少？",
            "responses": [
                {
                    "id": "甲",
                    "text": "王建国提出把磨坊改成图书馆。改造费用是42万元，县里出18万元。李秀梅同意捐出两台磨盘。"
                    "陈志远负责工程，要九个月。图书馆可以在十月开放。",
                },
                {
                    "id": "乙",
                    "text": "图书馆每周开放五天，星期一闭馆。青石镇的居民捐了12万元。因为屋顶漏水，所以必须先修屋顶。李秀梅捐出磨盘。",
                },
            ],
        }
    )


def other_english() -> Prompt:
    """Another document."""
    return Prompt.model_validate(
        {
            "id": "ferry",
            "document_id": "ferry",
            "context": "The ferry at Dorrow carries ten cars. Keeper Jorun Strake counted seven broken wires on 14 October. "
            "Six are allowed by the rules of the works. The cable was renewed in November by Benno Arkwell.",
            "query": "Why did the ferry stop?",
            "responses": [
                {
                    "id": "x",
                    "text": "Jorun Strake counted seven broken wires. Six are allowed. The cable was renewed in November.",
                }
            ],
        }
    )


def demo() -> list[Prompt]:
    """Three documents of the demo data with six answers each."""
    return list(read_prompts(DEMO))
