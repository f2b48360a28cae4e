"""Which dimensions there are, by name.

The set `trajectory` is for what an agent reports after a long run: the trajectory (thoughts, tool calls, results) is the
document, the task the question, the report the answer. Its two dimensions are not in the paper: they are completeness
(of the steps that the trajectory shows the task to need) and faithfulness (of what the report says was done) with
prompts of their own. Adding a dimension takes a file and a prompt:

1. `judge_pipeline/prompts/en/brevity.rate.txt`: the parts that `prompts.templates` describes; copy
   `helpfulness.rate.txt` and change what it asks. (`prompts/zh/` too if you judge Chinese documents; without it
   the English one serves.)
2. A class with a `name` and a `plan` (see `base.Dimension`). For a rating of the answer there is one already:

       class Brevity(RatingDimension):
           def __init__(self, options: JudgeOptions) -> None:
               super().__init__("brevity", options, prompts=Path(__file__).parent / "prompts")

3. Name it by where it lies, `my_package.brevity:Brevity`, with nothing of ours changed; or add a line below and
   name it `brevity`. Its scores then flow into `labels.jsonl`, the reward (`--weights brevity=1`) and the reward
   model like those of the four.
"""

from __future__ import annotations

import difflib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from judge_pipeline.common.errors import UserError
from judge_pipeline.dimensions.base import Dimension
from judge_pipeline.dimensions.completeness import Completeness
from judge_pipeline.dimensions.faithfulness import Faithfulness
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.dimensions.rating import JOINT, RatingDimension

Factory = Callable[[JudgeOptions], Dimension]

REGISTRY: dict[str, Factory] = {
    "helpfulness": partial(RatingDimension, "helpfulness"),
    "logicality": partial(RatingDimension, "logicality"),
    "faithfulness": Faithfulness,
    "completeness": Completeness,
    "plan_completeness": partial(Completeness, name="plan_completeness"),
    "execution_faithfulness": partial(Faithfulness, name="execution_faithfulness"),
}

SETS: dict[str, tuple[str, ...]] = {
    "paper": ("helpfulness", "logicality", "faithfulness", "completeness"),
    "trajectory": ("plan_completeness", "execution_faithfulness"),
}
"""Names that stand for several dimensions."""


def expand(names: Sequence[str]) -> list[str]:
    """The names with sets replaced by their members, each once."""
    return list(dict.fromkeys(member for name in names for member in SETS.get(name, (name,))))


def build_dimensions(names: Sequence[str], options: JudgeOptions) -> list[Dimension]:
    """The named dimensions. Raises UserError for a name nobody knows, with the nearest known one."""
    members = expand(names)
    if not members:
        raise UserError("no dimension to judge", f"name some of: {', '.join([*REGISTRY, *SETS])}")
    joint = JOINT if options.joint_ratings and set(JOINT) <= set(members) else ()
    dimensions: list[Dimension] = [
        RatingDimension(name, options, joint=True) if name in joint else _factory(name)(options)
        for name in members
    ]
    doubled = {one.name for one in dimensions if sum(other.name == one.name for other in dimensions) > 1}
    if doubled:
        raise UserError(f"two dimensions are called '{min(doubled)}'", "give each a name of its own")
    return dimensions


def _factory(name: str) -> Factory:
    if name in REGISTRY:
        return REGISTRY[name]
    if ":" not in name:
        near = difflib.get_close_matches(name, [*REGISTRY, *SETS], n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known are: {', '.join([*REGISTRY, *SETS])}"
        raise UserError(
            f"no dimension is called '{name}'", hint + ", or name your own as package.module:Class"
        )
    try:
        factory: Any = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"cannot import the dimension '{name}': {error}", "write it as package.module:Class"
        ) from error
    if not callable(factory) or (inspect.isclass(factory) and not hasattr(factory, "plan")):
        raise UserError(
            f"'{name}' is no dimension: it has no method plan", "see judge_pipeline/dimensions/base.py"
        )
    made: Factory = factory
    return made
