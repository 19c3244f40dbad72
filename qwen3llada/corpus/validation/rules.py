"""Parameters of validation: the rules for conversations, and their strictness."""

from typing import Literal

from pydantic import Field, model_validator

from qwen3llada.errors import InputError
from qwen3llada.section import MAX_TOKENS, Section


class Rule(Section):
    """How strictly one rule is applied."""

    severity: Literal["error", "warning", "off"] = Field(
        default="error",
        description="error = a record that breaks the rule is invalid and not trained on; warning = only reported; "
        "off = not checked",
    )
    mostly: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the records that must keep the rule (above 0, to 1). Fewer: the rule fails. Else "
        "it has passed, and invalid records are only set aside",
    )


WARNING = Rule(severity="warning")
#: Rules without which a record cannot be tokenized.
STRUCTURAL = ("readable", "structure", "unicode", "pairs")


class Rules(Section):
    """The rules, by name."""

    readable: Rule = Field(default=Rule(), description="the record can be read: JSON in UTF-8, whole")
    structure: Rule = Field(
        default=Rule(),
        description="a list of turns, each an object with the texts from and value; system text or absent",
    )
    unicode: Rule = Field(default=Rule(), description="every text is valid Unicode, without lone surrogates")
    roles: Rule = Field(default=Rule(), description="every turn is from human (user) or gpt (assistant)")
    pairs: Rule = Field(
        default=Rule(), description="at least one turn of human is followed by one of gpt that is taught"
    )
    alternation: Rule = Field(default=Rule(), description="human begins, and both take turns")
    not_blank: Rule = Field(default=Rule(), description="no text is empty or white space only")
    control_characters: Rule = Field(
        default=Rule(), description="no text holds control characters (tab and line breaks aside) or a byte order mark"
    )
    length: Rule = Field(default=Rule(), description="a record has at most max_tokens tokens")
    leakage: Rule = Field(default=Rule(), description="no prompt of the training split is one of the held-out split")
    media: Rule = Field(
        default=Rule(), description="no text has a place for an image, video or audio (<image>), which are not used"
    )
    unused_fields: Rule = Field(
        default=WARNING, description="every field that holds text, media or tools is used in the conversation"
    )
    control_tokens: Rule = Field(
        default=WARNING, description="no text holds what reads like a control token, as <|im_end|>"
    )
    duplicates: Rule = Field(default=WARNING, description="no record is equal to an earlier one")
    conflicts: Rule = Field(default=WARNING, description="no prompt has another answer than it had before")


class ValidateParams(Section):
    """Requirements on conversations before training, and the reaction to violations."""

    on_invalid: Literal["fail", "quarantine"] = Field(
        default="fail",
        description="fail = a failed rule stops the pipeline; quarantine = go on with the valid records. Invalid ones "
        "are written to reports/quarantine.jsonl in either case",
    )
    max_invalid_fraction: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="share of invalid records in a split above which the pipeline stops (0 to below 1)",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MAX_TOKENS,
        description="longest record in tokens (1 to 1,048,576); null = the model's own limit (max_position_embeddings)",
    )
    baseline: str | None = Field(
        default=None, description="profile.json of an earlier validation to compare with; null = no comparison"
    )
    max_drift: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Jensen-Shannon divergence from the baseline, in bits (0 to 1), above which there is a warning",
    )
    rules: Rules = Field(default=Rules(), description="severity and tolerance of each rule")

    @model_validator(mode="after")
    def _structural_rules_are_errors(self) -> "ValidateParams":
        for name in STRUCTURAL:
            severity = getattr(self.rules, name).severity
            if severity != "error":
                raise InputError(f"rules.{name}.severity={severity!r} must be error: such a record cannot be tokenized")
        return self
