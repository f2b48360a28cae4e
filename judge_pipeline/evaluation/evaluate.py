"""`judge-pipeline evaluate`: does a judge, or anything that scored the answers, agree with people?

In: scores (a label run, or a file of scored prompts) and people's values (`human`, `preferences`, in prompt records).
Out: `agreement.json`, `agreement.md` and `report.html`, and a table in the terminal: agreement by dimension, data set
and context length with intervals over documents, beside baselines that cost nothing; what each dimension adds; the
weights people's choices imply; and, when asked for, the judge baselines of LongReward's section 4.4.
"""

from __future__ import annotations

from judge_pipeline.common.config import Command
from judge_pipeline.evaluation.evaluate_config import EvaluateConfig

COMMAND = Command(
    name="evaluate",
    help="compare scores with people's judgements, beside baselines",
    config=EvaluateConfig,
    run="judge_pipeline.evaluation.run:run_evaluation",
    example="judge-pipeline evaluate runs/labels --prompts judged-by-people.jsonl --output runs/agreement",
)
