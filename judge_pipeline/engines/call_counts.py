"""How many calls and tokens, by template, and what they cost: of calls foreseen, of calls made, of shares of both.

A call that is foreseen is counted with a stand-in for its reply, made from its JSON schema; input is estimated with
the chunking tokenizer.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from judge_pipeline.calls.call import Call, CallUsage
from judge_pipeline.documents.chunking import FastTokenizer
from judge_pipeline.engines.run_calls import Prices

WORDS_TOKENS = 60
"""Tokens assumed for an analysis, or another text that a schema leaves open."""
SHOWN = 15_000
"""Characters shown of the beginning and of the end of a message."""
TEMPLATE_TOKENS = 4
"""That a chat template adds to a message."""


@dataclass
class Amount:
    """Calls and their tokens; expectations need not be whole."""

    calls: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    cached_input_tokens: float = 0.0

    def __add__(self, other: Amount) -> Amount:
        return Amount(*(value + more for value, more in zip(self.parts(), other.parts(), strict=True)))

    def parts(self) -> tuple[float, float, float, float]:
        """Calls, input, output and cached input tokens."""
        return self.calls, self.input_tokens, self.output_tokens, self.cached_input_tokens

    def scaled(self, *factors: float) -> Amount:
        """Each part times its factor; one factor serves all."""
        each = factors * 4 if len(factors) == 1 else factors
        return Amount(*(value * factor for value, factor in zip(self.parts(), each, strict=True)))

    @classmethod
    def made(cls, usage: CallUsage) -> Amount:
        """One call that was made."""
        return cls(1, usage.input_tokens, usage.output_tokens, usage.cached_input_tokens)

    @property
    def usage(self) -> CallUsage:
        """Tokens, rounded."""
        _, asked, written, cached = (round(value) for value in self.parts())
        return CallUsage(input_tokens=asked, output_tokens=written, cached_input_tokens=cached)


Amounts = dict[str, Amount]
"""By template."""


def total(amounts: Mapping[str, Amount]) -> Amount:
    """Of all templates."""
    return sum(amounts.values(), Amount())


@dataclass
class CallCounts:
    """Calls foreseen, each counted once however often it is wanted."""

    tokenizer: FastTokenizer
    amounts: Amounts = field(default_factory=lambda: defaultdict(Amount))
    examples: dict[str, Call] = field(default_factory=dict)
    """The first call of each template."""
    _keys: set[str] = field(default_factory=set)

    def foresee(self, call: Call, items: Sequence[str] = ()) -> tuple[str, Amount]:
        """A stand-in for the call's reply, its lists made of `items`, and what it adds to the count."""
        text = json.dumps(stand_in(call.json_schema or {}, items), ensure_ascii=False)
        if (key := call.key("")) in self._keys:
            return text, Amount()
        self._keys.add(key)
        written = self.tokenizer.count(text) + WORDS_TOKENS * text.count(STAND_IN)
        asked = estimated_tokens(call, self.tokenizer)
        amount = Amount(1, asked, min(written, call.sampling.max_tokens))
        self.amounts[call.template] += amount
        self.examples.setdefault(call.template, call)
        return text, amount


STAND_IN = "stand-in"


def stand_in(schema: Mapping[str, Any], items: Sequence[str]) -> Any:
    """A value that a schema allows; arrays of texts hold `items`."""
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type")
    if kind == "object":
        return {name: stand_in(part, items) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        part = schema.get("items", {})
        if part.get("type") == "string":
            return list(items)[: schema.get("maxItems", len(items))]
        return [stand_in(part, items) for _ in range(schema.get("minItems", 0))]
    if kind in ("integer", "number"):
        return schema.get("minimum", 0)
    if kind == "boolean":
        return False
    return STAND_IN


def estimated_tokens(call: Call, tokenizer: FastTokenizer) -> int:
    """Length of a call's messages in tokens of the chunking tokenizer, with what a chat template adds to each."""
    return sum(tokenizer.count(message.content) + TEMPLATE_TOKENS for message in call.messages)


def example_lines(examples: Mapping[str, Call]) -> list[str]:
    """The first call of each template, as it would be asked."""
    lines: list[str] = []
    for template, call in sorted(examples.items()):
        lines += [f"──── {template}", ""]
        for message in call.messages:
            lines += [f"[{message.role}]", shortened(message.content), ""]
    return lines


def shortened(text: str) -> str:
    """A text as a terminal bears it: what is longer than twice `SHOWN` loses its middle."""
    left_out = len(text) - 2 * SHOWN
    return text if left_out <= 0 else f"{text[:SHOWN]}\n[… {left_out:,} characters …]\n{text[-SHOWN:]}"


def amount_lines(amounts: Mapping[str, Amount]) -> list[str]:
    """A table of calls and tokens by template, and their sum."""
    rows: Iterable[tuple[str, Amount]] = [*sorted(amounts.items()), ("all", total(amounts))]
    return [
        f"{'template':<32}{'calls':>10}{'input tokens':>16}{'output tokens':>16}",
        *(
            f"{name:<32}{row.calls:>10,.0f}{row.input_tokens:>16,.0f}{row.output_tokens:>16,.0f}"
            for name, row in rows
        ),
    ]


def cost_line(amounts: Mapping[str, Amount], prices: Prices, error: float | None = None) -> str:
    """The money expected; `error` is the share that it may be off by, where that was measured."""
    usage = total(amounts).usage
    cost = prices.cost(usage)
    if cost is None:
        return "give --price-input and --price-output (per million tokens) to see the money"
    off = "" if error is None else f" ± {cost * error:.4f}"
    cached = "without any discount for cached input"
    if usage.cached_input_tokens:
        cached = f"{usage.cached_input_tokens:,} input tokens of it cached"
    return f"cost expected: {cost:.4f}{off} ({cached})"


def thinking_lines(amounts: Mapping[str, Amount], budget: int | None, prices: Prices) -> list[str]:
    """What thinking adds at most, where a budget (tokens a call) bounds it; none without one."""
    if not budget:
        return []
    whole = total(amounts)
    most = whole + Amount(0, 0, budget * whole.calls)
    cost = prices.cost(most.usage)
    money = "" if cost is None else f", cost {cost:.4f}"
    return [
        f"thinking to its budget of {budget:,} tokens every time: {most.output_tokens:,.0f} tokens out{money}"
    ]
