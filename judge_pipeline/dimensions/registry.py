"""Which dimensions there are, by name.

In: names and options. Out: `Dimension`s, in the order asked for. Adding one takes a file and a prompt:

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
import importlib
import inspect
from collections.abc import Callable, Sequence

from judge_pipeline.common.errors import UserError
from judge_pipeline.dimensions.base import Dimension
from judge_pipeline.dimensions.completeness import Completeness
from judge_pipeline.dimensions.faithfulness import Faithfulness
from judge_pipeline.dimensions.helpfulness import Helpfulness
from judge_pipeline.dimensions.logicality import Logicality
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.dimensions.rating import JOINT
from judge_pipeline.dimensions.trajectory import ExecutionFaithfulness, PlanCompleteness

Factory = Callable[[JudgeOptions], Dimension]

REGISTRY: dict[str, Factory] = {
    "helpfulness": Helpfulness,
    "logicality": Logicality,
    "faithfulness": Faithfulness,
    "completeness": Completeness,
    "plan_completeness": PlanCompleteness,
    "execution_faithfulness": ExecutionFaithfulness,
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
    joint = options.joint_ratings and set(JOINT) <= set(members)
    dimensions: list[Dimension] = []
    for name in members:
        if joint and name in JOINT:
            dimensions.append((Helpfulness if name == "helpfulness" else Logicality)(options, joint=True))
        else:
            dimensions.append(_factory(name)(options))
    doubled = {one.name for one in dimensions if sum(other.name == one.name for other in dimensions) > 1}
    if doubled:
        raise UserError(f"two dimensions are called '{min(doubled)}'", "give each a name of its own")
    return dimensions


def _factory(name: str) -> Factory:
    if name in REGISTRY:
        return REGISTRY[name]
    if ":" in name:
        return _imported(name)
    near = difflib.get_close_matches(name, [*REGISTRY, *SETS], n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known are: {', '.join([*REGISTRY, *SETS])}"
    raise UserError(f"no dimension is called '{name}'", hint + ", or name your own as package.module:Class")


def _imported(name: str) -> Factory:
    module_name, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
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
