"""What one server wants put differently in a request; found out from its refusals, once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from judge_pipeline.engines.chat_protocol import SchemaMode

DROPPABLE = ("temperature", "top_p", "seed", "logprobs", "top_logprobs")


@dataclass
class Dialect:
    """Fields that a server calls otherwise, or does not take."""

    schema: SchemaMode = "strict"
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)

    def applied(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The request body as this server takes it."""
        return {
            self.renamed.get(name, name): value for name, value in body.items() if name not in self.dropped
        }

    def adapt(self, message: str, body: Mapping[str, Any], droppable: Sequence[str] = DROPPABLE) -> bool:
        """Change what is sent after a 400; False when the message names nothing that may be changed."""
        text = message.lower()
        if "max_completion_tokens" in text and "max_tokens" in body:
            self.renamed["max_tokens"] = "max_completion_tokens"
            return True
        if "response_format" in body and re.search(
            r"response_format|json_schema|schema|guided|structured", text
        ):
            self.schema = "loose" if self.schema == "strict" else "off"
            return True
        for name in droppable:
            if name in body and name in text:
                self.dropped |= {"logprobs", "top_logprobs"} if "logprobs" in name else {name}
                return True
        return False
