"""The gate before fine-tuning: Great Expectations judges the facts of every conversation.

Worker processes find the facts in blocks; about a hundred bytes per record stay in memory. The expectations then run
once over the facts of a split, so that their tolerance applies to the whole split.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qwen3llada.corpus.validation.rules import Rule, Rules, ValidateParams

__all__ = ["RuleResult", "Rules", "ValidateParams", "judge", "judge_drift", "open_context", "write_data_docs"]

_ALTERNATION = r"^(?:human gpt ?)*(?:human)?$"
_ROLES = r"^(?:(?:human|gpt)(?: |$))*$"


@dataclass(frozen=True)
class RuleResult:
    """Result of one rule: the number of records judged, and which broke it (record numbers in the split).

    `error`: why the rule could not be evaluated. It has then neither passed nor failed.
    """

    rule: str
    severity: str
    mostly: float
    passed: bool
    judged: int
    broken: np.ndarray = field(repr=False)  # [n] int64
    error: str | None = None


def expectations(params: ValidateParams) -> dict[str, Any]:
    """The expectation of each rule that is not off; its `meta` holds the rule's name."""
    import great_expectations.expectations as gxe

    classes: dict[str, tuple[Any, dict[str, Any]]] = {
        "readable": (gxe.ExpectColumnValuesToBeNull, {"column": "unreadable"}),
        "structure": (gxe.ExpectColumnValuesToBeNull, {"column": "malformed"}),
        "unicode": (gxe.ExpectColumnValuesToBeNull, {"column": "not_unicode"}),
        "roles": (gxe.ExpectColumnValuesToMatchRegex, {"column": "roles", "regex": _ROLES}),
        "pairs": (gxe.ExpectColumnValuesToBeBetween, {"column": "taught_pairs", "min_value": 1}),
        "alternation": (gxe.ExpectColumnValuesToMatchRegex, {"column": "roles", "regex": _ALTERNATION}),
        "not_blank": (gxe.ExpectColumnValuesToBeBetween, {"column": "blank_texts", "max_value": 0}),
        "control_characters": (gxe.ExpectColumnValuesToBeBetween, {"column": "control_characters", "max_value": 0}),
        "media": (gxe.ExpectColumnValuesToBeBetween, {"column": "dropped_media", "max_value": 0}),
        "unused_fields": (gxe.ExpectColumnValuesToBeNull, {"column": "unused_fields"}),
        "control_tokens": (gxe.ExpectColumnValuesToBeBetween, {"column": "control_tokens", "max_value": 0}),
        "length": (gxe.ExpectColumnValuesToBeBetween, {"column": "excess_tokens", "max_value": 0}),
        "leakage": (gxe.ExpectColumnValuesToBeNull, {"column": "leaked_from"}),
        "duplicates": (gxe.ExpectColumnValuesToBeNull, {"column": "duplicate_of"}),
        "conflicts": (gxe.ExpectColumnValuesToBeNull, {"column": "conflicts_with"}),
    }
    found = {}
    for name, (expectation, arguments) in classes.items():
        rule: Rule = getattr(params.rules, name)
        if rule.severity != "off":
            severity = "critical" if rule.severity == "error" else "warning"
            notes = Rules.model_fields[name].description
            found[name] = expectation(
                **arguments, mostly=rule.mostly, severity=severity, notes=notes, meta={"rule": name}
            )
    return found


def open_context(docs: Path) -> Any:
    """A silent, in-memory Great Expectations context. Its Data Docs go to the folder `docs`."""
    import os

    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    for site in list(context.variables.data_docs_sites or {}):  # the default site, in a temporary folder
        context.delete_data_docs_site(site)
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.absolute())}
    site = {"class_name": "SiteBuilder", "store_backend": store}
    context.add_data_docs_site(
        "conversations", site | {"site_index_builder": {"class_name": "DefaultSiteIndexBuilder"}}
    )
    context.data_sources.add_pandas("conversations")
    return context


def judge(context: Any, split: str, table: Any, params: ValidateParams) -> dict[str, RuleResult]:
    """The result of each rule by name. `table`: a row per record of the split, a column per fact."""
    import great_expectations.expectations as gxe

    rules = expectations(params)
    some = gxe.ExpectTableRowCountToBeBetween(
        min_value=1, severity="critical", notes="there are records", meta={"rule": "records"}
    )
    results = _run(context, split, table, [some, *rules.values()])
    found = {}
    for name in ("records", *rules):
        rule = getattr(params.rules, name, Rule())
        found[name] = _result(name, rule.severity, rule.mostly, results[name], len(table))
    return found


def judge_drift(context: Any, divergences: dict[str, float], limit: float) -> RuleResult:
    """Whether every distribution is within `limit` of the baseline."""
    import great_expectations.expectations as gxe
    import pandas as pd

    table = pd.DataFrame({"distribution": list(divergences), "divergence": list(divergences.values())})
    rule = gxe.ExpectColumnValuesToBeBetween(
        column="divergence", max_value=limit, severity="warning", notes="close to the baseline", meta={"rule": "drift"}
    )
    return _result("drift", "warning", 1.0, _run(context, "drift", table, [rule])["drift"], len(table))


def write_data_docs(context: Any) -> None:
    """Write the Data Docs of everything judged."""
    context.build_data_docs()


def _run(context: Any, name: str, table: Any, rules: list[Any]) -> dict[str, dict[str, Any]]:
    """Results of expectations over a data frame as JSON objects, by rule name."""
    import great_expectations as gx

    asset = context.data_sources.get("conversations").add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe("all")
    suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=rules))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
    # COMPLETE lists every record that breaks a rule. It is only fast while the index has no name.
    result = definition.run(batch_parameters={"dataframe": table}, result_format={"result_format": "COMPLETE"})
    documents = (single.to_json_dict() for single in result.results)
    return {document["expectation_config"]["meta"]["rule"]: document for document in documents}


def _result(name: str, severity: str, mostly: float, document: dict[str, Any], rows: int) -> RuleResult:
    details = document["result"]
    judged = details.get("element_count", rows) - (details.get("missing_count") or 0)
    broken = np.array(details.get("unexpected_index_list") or [], np.int64)
    return RuleResult(name, severity, mostly, bool(document["success"]), judged, broken, _exception(document))


def _exception(document: dict[str, Any]) -> str | None:
    """The message of an exception inside an expectation: one flat record, or one per failed metric."""
    info = document.get("exception_info") or {}
    for single in [info, *(value for value in info.values() if isinstance(value, dict))]:
        if single.get("raised_exception"):
            return " ".join(str(single.get("exception_message")).split())
    return None
